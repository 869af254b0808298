"""The operations of the losses: those of `keras.ops`, on tensors of torch by torch's own function.

Keras looks through the arguments of each operation for symbolic tensors, dtypes and devices anew, at every
step: 5 to 20 us each, together 0.25 of 13 ms a step of the mlp. On floats the results are the same, and so are
the gradients but at the very bounds of `clip`.
"""

import functools

import keras

if keras.backend.backend() == "torch":
    import torch
else:
    torch = None


def _operation(name, of_torch=None):
    """`keras.ops.<name>`, for a tensor of torch its function of that name or another one."""
    of_keras = getattr(keras.ops, name)
    if torch is None:
        return of_keras
    of_torch = of_torch or getattr(torch, name)

    @functools.wraps(of_keras)
    def operation(x, *args, **kwargs):
        of_tensor = isinstance(x, torch.Tensor)
        return (of_torch if of_tensor else of_keras)(x, *args, **kwargs)

    return operation


def _cast(x, dtype):
    return x.to(getattr(torch, dtype))


abs = _operation("abs")
any = _operation("any")
cast = _operation("cast", _cast)
# Keras makes tensors of the bounds, whose copies a GPU would be waited for. `hardtanh` is `clip` with one kernel
# backwards in place of five.
clip = _operation("clip", torch and torch.nn.functional.hardtanh)
equal = _operation("equal", torch and torch.eq)
exp = _operation("exp")
log = _operation("log")
mean = _operation("mean")
square = _operation("square")
sum = _operation("sum")
where = _operation("where")
