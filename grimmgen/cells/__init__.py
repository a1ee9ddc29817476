"""The cells: the equations of the network, forward and backward side by side, in plain PyTorch.

This is the readable truth that every fused kernel is held against. A cell reads a whole window and is given
what comes from its input already multiplied, so that it does not matter whether that was a look-up of
one-hot n-grams (first layer) or a matrix product (further layers). The Mogrifier alone is given the input
itself, because its state changes it.

    T  steps of the window      B  rows      H  hidden units      G  gates      V  vocabulary size
    E  numbers of an input
"""
