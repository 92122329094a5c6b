"""A model as programs that need nothing of this package: torch.export, AOTInductor and ONNX, each checked against it.

`programs` has what is exported, `formats` writes and loads it, `checks` compares it with the model, and `folder`
writes a folder with everything that a user of the programs needs.
"""
