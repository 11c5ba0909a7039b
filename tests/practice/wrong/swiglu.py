WRONG = [
    ("silu * self.up(x)", "silu + self.up(x)", "a closed gate lets nothing pass", "with -50 everywhere in `gate`"),
    (
        "silu * self.up(x)",
        "gate * torch.sigmoid(self.up(x)) * self.up(x)",
        "a closed gate lets nothing pass",
        "came out at batch",
    ),
    (
        "= gate * torch.sigmoid(gate)",
        "= torch.sigmoid(gate)",
        "an open gate lets all pass as often as it says",
        "with 30 everywhere in `gate`, what came out is not 30 times what was found",
    ),
    ("= gate * torch.sigmoid(gate)", "= gate", "a closed gate lets nothing pass", "with -50 everywhere in `gate`"),
    (
        "= gate * torch.sigmoid(gate)",
        "= torch.softmax(gate, dim=-1)",
        "a closed gate lets nothing pass",
        "came out at batch",
    ),
    ("= gate * torch.sigmoid(gate)", "= torch.nn.functional.gelu(gate)", "values", "the result has"),
    ("= gate * torch.sigmoid(gate)", "= torch.relu(gate)", "values", "the result has"),
    ("return self.down(activated)", "return activated", "shapes", "`embed`"),
    ("silu * self.up(x)", "silu * self.up(x.detach())", "gradients", "the gradient of `x`"),
]
