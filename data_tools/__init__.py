"""From other people's images and networks to the package's files: converters, quantization, training.

    quantization.py   float layers to integer layers, exactly
    digits.py         the embedded model and its images, from scratch
    image_folder.py   a folder of images to a dataset file
    cifar10.py        CIFAR-10, as archives or images, to a dataset file
    caltech101.py     Caltech-101, as archives or images, to a dataset file
    idx.py            MNIST and other IDX files to a dataset file
    resnet.py         residual networks in floats
    augmentation.py   noisy training images, integers to the end
    train.py          residual networks trained under noise
    converter.py      what every converter does the same: sources that are not trusted, whole files or none

The converters and `train` are run by `python -m intsmooth_ref.data_tools.NAME`; nothing in the package imports them.
"""
