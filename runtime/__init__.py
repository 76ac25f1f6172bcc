"""Runtimes: models in other precisions and engines, checked against the float32 model.

compiled, optimization: what users call. selection, trials, measurements: the engine of `auto`. torch_engines, graph_engines, quantization:
the engines. graph, any_size, graph_export: models as graphs, written as ONNX or for OpenVINO. outputs: models as functions of one tensor.
workers: threads that run a model.
"""
