WRONG = [
    (
        "    optimizer.zero_grad()\n",
        "",
        "a step takes nothing along from the last",
        "is not where the gradient of that step sends it",
    ),
    (
        "    optimizer.step()\n    optimizer.zero_grad()\n",
        "    optimizer.zero_grad()\n    optimizer.step()\n",
        "every weight moves against its gradient",
        "after a step all weights are what they were",
    ),
    (
        "    loss.backward()\n    optimizer.step()\n",
        "    optimizer.step()\n    loss.backward()\n",
        "every weight moves against its gradient",
        "after a step all weights are what they were",
    ),
    ("    optimizer.step()\n", "", "every weight moves against its gradient", "all weights are what they were"),
    ("    loss.backward()\n", "", "every weight moves against its gradient", "all weights are what they were"),
    (
        "return loss.detach()",
        "return next_token_loss(model(inputs), targets).detach()",
        "values",
        "the result has",
    ),
    (
        "return loss.detach()",
        "return loss",
        "the loss that is given back is a number and nothing else",
        "it requires a gradient",
    ),
    ("return loss.detach()", "return loss.item()", "shapes", "expected Float[Tensor"),
    (
        "next_token_loss(logits, targets)",
        "next_token_loss(logits, inputs)",
        "every weight moves against its gradient",
        "is not where its gradient sends it",
    ),
    ("loss.backward()", "(-loss).backward()", "every weight moves against its gradient", "is not where its gradient"),
]
