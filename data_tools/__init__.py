"""From other people's images and networks to the package's files: converters, quantization, training.

    quantization.py   float layers to integer layers, exactly
    digits.py         the embedded model and its images, from scratch
    image_folder.py   a folder of images to a dataset file
    cifar10.py        CIFAR-10, as archives or images, to a dataset file
    caltech101.py     Caltech-101, as archives or images, to a dataset file
    idx.py            MNIST and other IDX files to a dataset file
    converter.py      what every converter does the same: sources that are not trusted, whole files or none

The converters are run by `python -m intsmooth_ref.data_tools.NAME`; nothing in the package imports them.
"""
