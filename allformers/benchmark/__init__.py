"""The benchmark beside transformers: the same weights, the same threads, one process, in turns.

A single time says little on a machine that others use too, so every round times every contender once, one after the
other, and what counts is the ratio within a round. Shape checks are on unless a contender's name says otherwise. Memory
is measured too, each contender in a process of its own.

The peak rates of the machine are measured in the same run: its memory bandwidth, and the FLOPs a second of its fastest
kernel. The roofline of a row is the longer of two times: that of reading every weight once at the peak bandwidth, and
that of all FLOPs at the peak rate. Nothing that computes the same can take less. Where there is next to nothing to
compute, the roofline is the time of the same operators called one after the other without Python.
"""
