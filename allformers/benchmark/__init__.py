"""Timing against the reference: the same weights, the same threads, one process, in turns.

A single time says little on a machine that others use too, so every round times every contender once, one after the
other, and what counts is the ratio within a round. Shape checks are on unless a contender's name says otherwise. Memory
is measured too, each contender in a process of its own.

What the machine can do at best is measured in the same run: how fast it reads memory, and how fast its best kernel
multiplies. The floor of a row is the longer of two times: that of reading every weight once at the one rate, and that
of all multiplications at the other. Nothing that computes the same can take less. Where there is next to nothing to
compute, it is the time of the same operators one after the other, called without Python.
"""
