"""Make a trained network small enough for a microcontroller: sparse, narrow, of 8 bits, and in C.

Mohaimenuzzaman et al., Pattern Recognition 2023, "Environmental Sound Classification on the Edge": prune single weights, then whole
channels, train again, quantise to 8 bits, deploy. :mod:`~cnnkit_audio.compress.pipeline` does these in a row; each step is usable alone.
"""
