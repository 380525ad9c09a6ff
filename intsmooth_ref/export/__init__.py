"""A model for those who do not run this package: C99, NumPy arrays with a JSON description, ONNX. Integers only.

`c99` writes a header and a source without dependencies, `scratch` plans the memory in which it computes, `arrays`
writes a `.npz` file whose layout `ARRAYS.md` specifies, and `onnx` a graph of integer operators.
"""
