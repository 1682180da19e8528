"""OpenVINO beside signals: its plugins change the stack on which they are handled."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

# Released in the order in which they were loaded: two plugins that set back each other's stack
# would leave the second with one that is freed.
PROGRAM = """
import gc, os, signal
import onnx
from onnx import TensorProto, helper
from castling.export.openvino_runtime import compile_openvino, read_openvino

value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
written.ir_version = 9
first, second = (compile_openvino(read_openvino(written.SerializeToString()), t) for t in (None, 1))
request = second.create_infer_request()
del first
gc.collect()
del second, request
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGUSR1 of POSIX")
def test_signals_are_handled_after_two_models():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
