"""The ONNX backend node tests, run through lowerkit's own stages and the cpu target."""
