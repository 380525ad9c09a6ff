"""The compiled engine measured beside its peers: the same network, the same images, the same threads, the same minutes.

    networks.py      networks of random weights, the same to the bit on every machine, and pictures for them
    peers.py         the same network in PyTorch, ONNX Runtime and OpenVINO, in float32 and in 8 bits
    measurement.py   turns, rounds, medians, ratios

The peers are no part of the package: each is imported only where it is measured, and left out where it is missing.
"""
