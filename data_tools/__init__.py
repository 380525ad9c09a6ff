"""From other people's images and networks to the package's files: converters, quantization, training.

    quantization.py   float layers to integer layers, exactly
    digits.py         the embedded model and its images, from scratch
    image_folder.py   a folder of images to a dataset file

The converters are run by `python -m intsmooth_ref.data_tools.NAME`; nothing in the package imports them.
"""
