"""Shipped model versions, and their networks run by ONNX Runtime. May import cells."""
