"""What the file of a Keras model may hold, checked before Keras opens it.

Keras' safe mode refuses Python code. It still builds whatever a file asks for, however large, of any of its classes,
and some of those read other files (CVE-2025-12058). Here is the list of those that the workshop's networks need.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from workshop.models.inspection import UNREADABLE, open_archive, refusal

WEIGHTS = "model.weights.h5"
MEMBERS = ["config.json", "metadata.json", WEIGHTS]
MOST_LAYERS = 100

Activation = Literal[
    "elu", "exponential", "gelu", "leaky_relu", "linear", "mish", "relu", "relu6", "selu", "sigmoid", "silu",
    "softmax", "softplus", "softsign", "tanh",
]  # fmt: skip
Axis = Literal[-1]  # the features; along another axis there could be as many weights as a file cares to say
Precision = Literal["float16", "float32", "float64"]
Shape = tuple[pydantic.NonNegativeInt | None, pydantic.PositiveInt]
# No text: behind that, Keras may look for a class.
Value = float | int | bool | None


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class _Part(_Strict):
    registered_name: None = None
    shared_object_id: int | None = None


class _Policy(_Part):
    module: Literal["keras"]
    class_name: Literal["DTypePolicy"]
    config: dict[Literal["name"], Precision]


class _Start(_Part):
    module: Literal["keras.initializers"]
    class_name: Literal[
        "Constant", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "Ones", "RandomNormal", "RandomUniform",
        "Zeros",
    ]  # fmt: skip
    config: dict[str, Value | list[Value]]


class _Penalty(_Part):
    module: Literal["keras.regularizers"]
    class_name: Literal["L1", "L1L2", "L2"]
    config: dict[str, Value]


class _Common(_Strict):
    name: str
    trainable: bool = True
    dtype: _Policy | Precision


class _InputSettings(_Common):
    batch_shape: tuple[None, pydantic.PositiveInt]
    sparse: Literal[False] = False
    ragged: Literal[False] = False
    optional: Literal[False] = False


class _NormalizationSettings(_Common):
    axis: Axis | tuple[Axis]
    mean: Value | list[Value] = None
    variance: Value | list[Value] = None
    invert: bool = False


class _DenseSettings(_Common):
    units: pydantic.PositiveInt
    activation: Activation | None = None
    use_bias: bool = True
    kernel_initializer: _Start
    bias_initializer: _Start
    kernel_regularizer: _Penalty | None = None
    bias_regularizer: _Penalty | None = None
    activity_regularizer: _Penalty | None = None
    kernel_constraint: None = None
    bias_constraint: None = None
    quantization_config: None = None


class _DropoutSettings(_Common):
    rate: float
    seed: int | None = None
    noise_shape: None = None


class _BatchNormalizationSettings(_Common):
    axis: Axis
    momentum: float
    epsilon: float
    center: bool
    scale: bool
    beta_initializer: _Start
    gamma_initializer: _Start
    moving_mean_initializer: _Start
    moving_variance_initializer: _Start
    beta_regularizer: _Penalty | None = None
    gamma_regularizer: _Penalty | None = None
    beta_constraint: None = None
    gamma_constraint: None = None
    synchronized: Literal[False] = False
    renorm: Literal[False] = False
    renorm_clipping: None = None
    renorm_momentum: float = 0.99


class _ActivationSettings(_Common):
    activation: Activation


class _Built(_Strict):
    input_shape: Shape


class _Layer(_Part):
    module: Literal["keras.layers"]
    build_config: _Built | None = None


class _Input(_Layer):
    class_name: Literal["InputLayer"]
    config: _InputSettings


class _Normalization(_Layer):
    class_name: Literal["Normalization"]
    config: _NormalizationSettings


class _Dense(_Layer):
    class_name: Literal["Dense"]
    config: _DenseSettings


class _Dropout(_Layer):
    class_name: Literal["Dropout"]
    config: _DropoutSettings


class _BatchNormalization(_Layer):
    class_name: Literal["BatchNormalization"]
    config: _BatchNormalizationSettings


class _Activation(_Layer):
    class_name: Literal["Activation"]
    config: _ActivationSettings


_AnyLayer = Annotated[
    _Input | _Normalization | _Dense | _Dropout | _BatchNormalization | _Activation,
    pydantic.Field(discriminator="class_name"),
]


class _Layers(_Common):
    layers: Annotated[list[_AnyLayer], pydantic.Field(min_length=2, max_length=MOST_LAYERS)]
    build_input_shape: Shape | None = None


class _Network(_Part):
    module: Literal["keras"]
    class_name: Literal["Sequential"]
    config: _Layers
    build_config: _Built | None = None
    compile_config: Any = None  # how it was trained: not read where a model is only asked


def check_network(file: Path, name: str) -> None:
    """Raise ModelError unless a `.keras` file holds a plain sequence of layers, and all the weights that it declares.

    ``name`` is what the error calls the model. Format: keras.io/guides/serialization_and_saving.
    """
    with open_archive(file, name) as archive:
        members = archive.namelist()
        if sorted(members) != MEMBERS:
            raise refusal(name, "The Keras model holds other members.", ", ".join(members), ", ".join(MEMBERS))
        try:
            network = _Network.model_validate(json.loads(archive.read("config.json")))
            declared = _count_weights(network.config.layers)
            stored = _count_stored(archive.read(WEIGHTS))
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r:.80}"
            what, expected = "The Keras model holds what is not trusted.", "plain layers, one after the other"
            raise refusal(name, what, found, expected) from None
        except UNREADABLE as error:
            raise refusal(name, "The Keras model is damaged.", error) from None
    if declared > stored:
        raise refusal(name, "The Keras model declares weights that it does not hold.", declared, f"at most {stored}")


def _count_weights(layers: list[_Layer]) -> int:
    """Return how many weights layers ask for, but for a few per unit; raise ValueError if they do not fit together."""
    first, *others = layers
    if not isinstance(first, _Input) or any(isinstance(layer, _Input) for layer in others):
        raise ValueError("its layers do not start with the one input")
    width, weights = first.config.batch_shape[1], 0
    for layer in others:
        if layer.build_config and layer.build_config.input_shape[1] != width:
            raise ValueError(
                f"{layer.config.name} was built for {layer.build_config.input_shape[1]} inputs, not {width}"
            )
        if isinstance(layer, _Dense):
            weights += width * layer.config.units
            width = layer.config.units
        else:
            weights += width
    return weights


def _count_stored(content: bytes) -> int:
    """Return how many numbers an HDF5 file holds; raise ValueError when some of them are not in it."""
    import h5py

    numbers, seen = 0, set()
    with h5py.File(io.BytesIO(content), "r") as file:
        groups = [file]
        while groups:
            group = groups.pop()
            for key in group:
                if group.get(key, getlink=True, getclass=True) is not h5py.HardLink:
                    raise ValueError(f"{group.name}/{key} is a link elsewhere")
                item = group[key]
                if (address := h5py.h5o.get_info(item.id).addr) in seen:
                    raise ValueError(f"{item.name} is there twice")
                seen.add(address)
                if isinstance(item, h5py.Group):
                    groups.append(item)
                else:
                    numbers += _size_of(item)
    return numbers


def _size_of(item) -> int:
    """Return how many numbers a dataset has; raise ValueError when they are not all in the file as they are."""
    kind = getattr(item, "dtype", None)
    if kind is None or item.shape is None or kind.kind not in "fiu":
        raise ValueError(f"{item.name} holds no numbers")
    if item.external or item.is_virtual or item.chunks or item.nbytes > item.id.get_storage_size():
        raise ValueError(f"{item.name} is not in the file, or packed")
    return item.size
