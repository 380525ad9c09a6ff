"""From other people's images and networks to the package's files: programs `python -m intsmooth_ref.data_tools.NAME`.

    cifar10, caltech101, idx, image_folder     archives, files or folders of images --> dataset file
    torch_import, onnx_import                  somebody's network                   --> float model file
    quantized_onnx_import, tflite_import       somebody's quantized network         --> integer model file
    train                                      images, an architecture              --> float model file
    quantize                                   float model, images                  --> integer model file
    integer_training                           both models, images                  --> a better integer model file
    evaluate                                   both models, images                  --> both certified, side by side
    digits                                     all of it in one, for the embedded model and its images

What they are made of:

    program.py              the frame of every program: help, progress, errors in one line
    converter.py            what every converter does the same: sources that are not trusted, whole files or none
    float_model.py          a trained network as layers in one graph: what stands between trainer and integers
    float_file.py           ... in HDF5
    float_engine.py         ... computed in NumPy, which specifies it
    torch_network.py        ... as a PyTorch module, with gradients
    float_onnx.py           ... as an ONNX file, for runtimes
    channels_first.py       what is known of networks laid out (C, H, W), for both importers
    onnx_file.py            ONNX files that are not trusted, for both of theirs
    tflite_file.py          TFLite files that are not trusted
    integer_builder.py      quantized networks of other formats, operation by operation, exactly
    import_program.py       what both importers of quantized networks do the same
    architectures.py        ResNets, VGGs and MobileNetV2 as float models, with first weights
    augmentation.py         noisy training images, integers to the end
    folding.py              batch normalization and input normalization into the layers beside them
    calibration.py          which values a tensor takes, and the grid that holds them
    quantization.py         float layers to integer layers, exactly
    post_training.py        a float model to an integer model, by these three
    integer_network.py      an integer model as a PyTorch module: the engine's integers, gradients through them
    float_certification.py  the published procedure in floats, for comparison only
    comparison.py           its table, beside that of the integers

Nothing in the package imports these. PyTorch and ONNX are imported where they are needed: the extras `train`, `onnx`.
"""
