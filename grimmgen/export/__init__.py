"""Models in other forms: a web page, ONNX, state dicts of torch.nn. None of them needs grimmgen where it is used."""
