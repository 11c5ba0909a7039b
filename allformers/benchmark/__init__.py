"""The benchmark beside transformers: the same weights, the same threads, one process, in turns.

A single time says little on a machine that others use too, so every round times every contender once, one after the
other, and what counts is the ratio within a round. Shape checks are on unless a contender's name says otherwise. Memory
is measured too, each contender in a process of its own.

The peak rates of the machine are measured in the same run: its memory bandwidth, and the FLOPs a second of its fastest
kernel. The roofline of a row is the longer of two times: that of reading every weight once at the peak bandwidth, and
that of all FLOPs at the peak rate. It is a bound, as far as the measured peaks are the machine's own.

Two rows have another roofline. For the memory of loading it is the size of the weights. For the call of a small model,
which has next to nothing to compute, it is a measured time: that of a pass recorded by TorchScript, the same operators
without Python. It is no bound, since a compiled pass can take less.
"""
