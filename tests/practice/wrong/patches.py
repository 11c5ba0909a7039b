WRONG = [
    (
        "-> batch (rows columns) (channels",
        "-> batch (columns rows) (channels",
        "patches are read like a page",
        "the patch at the end of the first row came to seq 4",
    ),
    (
        "(channels patch_height patch_width)",
        "(patch_height patch_width channels)",
        "a patch keeps its channels together",
        "its numbers are at inputs 1, 4, 7, 10",
    ),
    ("(channels patch_height patch_width)", "(channels patch_width patch_height)", "values", "numbers differ"),
    (
        "(rows patch_height) (columns patch_width)",
        "(patch_height rows) (patch_width columns)",
        "a position is one square of the image",
        "all were empty but one, and what it held came to seq 0, 2, 3, 5",
    ),
    (
        "        patch_height=size,\n        patch_width=size,\n",
        "        rows=size,\n        columns=size,\n",
        "shapes",
        "has 4 on axis `seq`, expected 12",
    ),
    (
        "-> batch (rows columns) (channels patch_height patch_width)",
        "-> batch channels (rows columns) (patch_height patch_width)",
        "shapes",
        "has 4 axes, expected 3",
    ),
]
