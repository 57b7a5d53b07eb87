"""How llama.cpp quantises the same weights: peer of `fledgling export`.

    python llama_cpp_quantize.py F32.gguf OUT.gguf FTYPE [IMATRIX.gguf]   # FTYPE: 2 q4_0, 8 q5_0, 9 q5_1, 7 q8_0, 15 q4_k_m

Needs llama-cpp-python and gguf. Prints 0 when the file was written.
"""

import ctypes
import sys

import gguf
import llama_cpp
import numpy as np


def importance(path):
    """The entries that llama_model_quantize reads, and the arrays that they point into."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    arrays = []
    for entry, name in zip(entries, names):
        means = (tensors[name + ".in_sum2"] / tensors[name + ".counts"].reshape(-1)[0]).reshape(-1).astype(np.float32)
        arrays.append(means)
        entry.name, entry.size = name.encode(), means.size
        entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries, arrays


ERROR = 4  # of enum ggml_log_level


@llama_cpp.llama_log_callback
def errors_only(level, text, _):
    """A line for each of some hundred tensors is of no use."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main():
    source, out, ftype, *imatrix = sys.argv[1:]
    llama_cpp.llama_log_set(errors_only, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(ftype), 2
    if imatrix:
        entries, arrays = importance(imatrix[0])
        params.imatrix = ctypes.cast(entries, ctypes.POINTER(type(entries[0])))
    print(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    main()
