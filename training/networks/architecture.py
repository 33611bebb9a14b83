"""The networks: the thesis' modified Xception, broken at the sixth layer from the end, and Keng's VAE."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from labref.cells.image import BACKGROUND, CROP_SIZE
from training.config import ClassifierConfig, VaeConfig

__all__ = [
    "BREAK",
    "AttributeLoss",
    "Circle",
    "OrbitPooling",
    "Upright",
    "build_classifier",
    "build_feature_model",
    "build_oriented",
    "build_trunk",
    "build_vae_parts",
    "draw_weights",
    "orbit_matrix",
    "orientations_of",
    "start_from",
    "with_features",
    "with_heads",
]

BREAK = "break"
"""Name of the batch normalisation that is the sixth layer from the classifier's end: where features are taken."""
_SOFT = 3 / 128  # width of the edge of the circle, as a share of the side of the crop
_ANGLES = 360  # that are tried to turn a crop upright, before the best one is refined
_HARMONICS = {2: 0.0, 3: np.pi / 4, 4: 3 * np.pi / 4}  # with the phase that each has where a crop lies upright
_REACH = 0.9  # of half the side: what lies farther out does not tell how a cell lies


def build_classifier(config: ClassifierConfig, classes: int) -> keras.Model:
    """Modified Xception: float32[n, s, s, 3] with values 0 to 255 → class probabilities float32[n, classes].

    Chollet's Xception (arXiv 1610.02357, figure 5) with the middle flow `middle_repeats` times instead of eight, and an
    exit flow that narrows to `break_channels`, as the thesis' figure 31: at 224 px the break is 7×7×256 = 12,544
    numbers.
    """

    def wide(filters: int) -> int:
        return max(8, round(filters * config.width / 8) * 8)

    def norm(name: str | None = None) -> Any:
        if config.normalisation == "group":
            return layers.GroupNormalization(groups=8, name=name)
        return layers.BatchNormalization(momentum=config.batch_norm_momentum, name=name)

    def conv(filters: int, kernel: int, strides: int = 1) -> Any:
        return layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False)

    def separable(filters: int) -> Any:
        return layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)

    inputs = keras.Input((config.input_size, config.input_size, 3), name="crop")
    x = Upright(name="upright", dtype="float32")(inputs) if config.upright else inputs
    x = Circle(name="circle")(x) if config.circle else x
    x = layers.Rescaling(1.0 / 255.0)(x)
    x = layers.ReLU()(norm()(conv(wide(32), 3, 2)(x)))
    x = layers.ReLU()(norm()(conv(wide(64), 3)(x)))
    for number, filters in enumerate((128, 256, 728)):
        residual = norm()(conv(wide(filters), 1, 2)(x))
        if number:
            x = layers.ReLU()(x)
        x = norm()(separable(wide(filters))(x))
        x = norm()(separable(wide(filters))(layers.ReLU()(x)))
        x = layers.Add()([layers.MaxPooling2D(3, 2, padding="same")(x), residual])
    for _ in range(config.middle_repeats):
        residual = x
        for _ in range(3):
            x = norm()(separable(wide(728))(layers.ReLU()(x)))
        x = layers.Add()([x, residual])
    residual = norm()(conv(wide(1024), 1, 2)(x))
    x = norm()(separable(wide(728))(layers.ReLU()(x)))
    x = norm()(separable(wide(1024))(layers.ReLU()(x)))
    x = layers.Add()([layers.MaxPooling2D(3, 2, padding="same")(x), residual])
    x = separable(config.break_channels)(x)
    x = norm(name=BREAK)(x)
    x = layers.ReLU()(x)
    x = separable(wide(1024))(x)
    x = norm()(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(inputs, outputs, name="modified_xception")


def _window(side: int, reach: float, edge: float) -> NDArray[np.float64]:
    """float64[side, side]: 0 from `reach` pixels around the middle on, 1 where that is `edge` pixels away, smooth
    between."""
    place = np.arange(side) - (side - 1) / 2
    within = np.clip((reach - np.hypot(place[:, None], place[None])) / edge, 0.0, 1.0)
    return within**2 * (3.0 - 2.0 * within)


@keras.saving.register_keras_serializable("labref")
class Circle(layers.Layer):
    """[n, s, s, 3] with background outside of the circle inscribed in the crop, over a soft edge: what the corners hold
    changes as a cell is turned."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Keep the window as a constant."""
        side = int(input_shape[1])
        self.window = _window(side, side / 2, _SOFT * side).astype(np.float32)[None, :, :, None]

    def call(self, inputs: Any) -> Any:
        """One product and one sum."""
        return inputs * self.window + BACKGROUND * (1.0 - self.window)

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Unchanged."""
        return input_shape


@keras.saving.register_keras_serializable("labref")
class Upright(layers.Layer):
    """[n, s, s, 3], values 0 to 255, turned so that a cell lies alike however its picture was turned.

    Density, which weighs more the farther out it lies, is expanded in circular harmonics around its middle
    (Hsu & Arsenault, Applied Optics 21, 4016, 1982). The crop is turned, and mirrored where that is better, so
    that the second to the fourth come nearest to phases that were chosen to be steady on training cells; the first
    tells above all how well a crop is centred. It is turned by bilinear interpolation, and beyond its edges are their
    pixels, which a `Circle` covers.
    """

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Keep what weighs the pixels, and the poses, as constants."""
        self.side = side = int(input_shape[1])
        row, column = (axis.ravel() for axis in np.mgrid[:side, :side] - (side - 1) / 2)
        radius, angle = np.hypot(row, column), np.arctan2(row, column)
        weight = radius * _window(side, (_REACH / 2 + _SOFT) * side, 2 * _SOFT * side).ravel()
        weight /= weight.sum()
        order, phase = np.repeat([*_HARMONICS], 2), np.repeat([*_HARMONICS.values()], 2)
        odd = np.arange(len(order)) % 2 == 1  # cosines and sines take turns
        waves = np.where(odd, np.sin(angle[:, None] * order), np.cos(angle[:, None] * order)) * weight[:, None]
        waves -= weight[:, None] * waves.sum(axis=0)  # an even field has no direction
        turns = 2 * np.pi * np.arange(_ANGLES)[:, None] / _ANGLES
        # how near the phases are after a turn, and its derivatives; the sines of a mirrored crop are negative
        near = np.where(odd, np.sin(turns * order + phase), np.cos(turns * order + phase))
        slope = order * np.where(odd, np.cos(turns * order + phase), -np.sin(turns * order + phase))
        sign = np.where(odd, -1.0, 1.0)
        near, slope = (np.concatenate([table, table * sign]) for table in (near, slope))
        bend = -(order**2) * near
        self.waves, self.near = waves.astype(np.float32), near.T.astype(np.float32)
        self.slope, self.bend = slope.astype(np.float32), bend.astype(np.float32)
        self.cosine, self.sine = (np.tile(wave(turns[:, 0]), 2).astype(np.float32) for wave in (np.cos, np.sin))
        self.row, self.column = row.astype(np.float32), column.astype(np.float32)

    def call(self, inputs: Any) -> Any:
        """By operators that labs know: `labref.bundles.graph`."""
        ops = keras.ops
        side, middle = self.side, (self.side - 1) / 2
        shown = ops.cast(inputs, "float32")
        density = ops.reshape(BACKGROUND - ops.mean(shown, axis=-1), (-1, side * side))
        found = ops.matmul(density, self.waves)
        near = ops.matmul(found, self.near)
        scale = 2.0**24 / ops.maximum(ops.max(ops.abs(near), axis=1, keepdims=True), 1e-6)
        best = ops.argmax(ops.cast(near * scale, "int32"), axis=1)
        slope, bend = (ops.sum(found * ops.take(t, best, axis=0), axis=1) for t in (self.slope, self.bend))
        most = 2 * np.pi / _ANGLES
        more = ops.clip(slope / ops.maximum(-bend, 1e-9), -most, most)  # Newton's; an even field has no bend
        cosine, sine = ops.take(self.cosine, best), ops.take(self.sine, best)
        small, rest = more - more**3 / 6, 1.0 - more**2 / 2  # its sine and cosine: it is less than 0.02
        cosine, sine = (cosine * rest - sine * small)[:, None], (sine * rest + cosine * small)[:, None]
        mirror = 1.0 - 2.0 * ops.cast(best >= _ANGLES, "float32")[:, None]
        row = ops.clip((sine * self.column + cosine * self.row) * mirror + middle, 0.0, side - 1.0)
        column = ops.clip(cosine * self.column - sine * self.row + middle, 0.0, side - 1.0)
        top, left = ops.minimum(ops.floor(row), side - 2.0), ops.minimum(ops.floor(column), side - 2.0)
        down, right = (row - top)[:, None], (column - left)[:, None]
        four = [shown[:, :-1, :-1], shown[:, :-1, 1:], shown[:, 1:, :-1], shown[:, 1:, 1:]]  # each with its neighbours
        four = ops.reshape(ops.concatenate(four, axis=-1), (-1, (side - 1) ** 2, 12))
        four = _pixels_at(four, ops.cast(top * (side - 1.0) + left, "int32"))
        four = ops.transpose(four, (0, 2, 1))
        both = four[:, :6] + (four[:, 6:] - four[:, :6]) * down
        turned = both[:, :3] + (both[:, 3:] - both[:, :3]) * right
        return ops.transpose(ops.reshape(turned, (-1, 3, side, side)), (0, 2, 3, 1))

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Unchanged."""
        return input_shape


def _pixels_at(pixels: Any, places: Any) -> Any:
    """Of float32[n, p, c], those at int32[n, m]: float32[n, m, c]."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(pixels, places, batch_dims=1)
    return keras.ops.take_along_axis(pixels, places[..., None], axis=1)


@keras.saving.register_keras_serializable("labref")
class AttributeLoss(keras.losses.Loss):
    """Cross entropy of several attributes side by side, mean over those that are known.

    sizes : number of values of each attribute. y_true int[n, attributes], -1 where unknown; y_pred float32[n,
    sum(sizes)], logits.
    """

    def __init__(self, sizes: tuple[int, ...], name: str = "attribute_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.sizes = tuple(sizes)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """float32[n]."""
        ops = keras.ops
        total: Any = 0.0
        known: Any = 0.0
        start = 0
        for column, size in enumerate(self.sizes):
            code = ops.cast(y_true[:, column], "int32")
            told = ops.cast(code >= 0, "float32")
            entropy = ops.sparse_categorical_crossentropy(
                ops.maximum(code, 0), ops.cast(y_pred[:, start : start + size], "float32"), from_logits=True
            )
            total, known, start = total + told * entropy, known + told, start + size
        return total / ops.maximum(known, 1.0)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "sizes": list(self.sizes)}


def reverse_gradient(x: Any) -> Any:
    """x itself, with its gradient turned round (Ganin & Lempitsky, arXiv 1409.7495); for any backend of Keras."""
    return 2.0 * keras.ops.stop_gradient(x) - x


@keras.saving.register_keras_serializable("labref")
class ReverseGradient(layers.Layer):
    """`reverse_gradient` as a layer."""

    def call(self, inputs: Any) -> Any:
        """The inputs."""
        return reverse_gradient(inputs)


def with_heads(classifier: keras.Model, attributes: tuple[int, ...] = (), domains: int = 0) -> keras.Model:
    """The classifier with more outputs from its last features: logits float32[n, sum(attributes)] of expert attributes
    ("attributes"), and logits float32[n, domains] of the optics ("domain"), which its features learn not to tell."""
    last = classifier.get_layer("probabilities").input
    outputs = [classifier.output]
    if attributes:
        outputs.append(layers.Dense(sum(attributes), dtype="float32", name="attributes")(last))
    if domains:
        hidden = layers.Dense(64, activation="relu", name="optics")(ReverseGradient()(last))
        outputs.append(layers.Dense(domains, dtype="float32", name="domain")(hidden))
    return keras.Model(classifier.input, outputs, name="classifier_with_heads")


def draw_weights(model: Any, seed: int) -> None:
    """Draw the kernels of a new model or layer by Glorot & Bengio (2010, eq. 16), Keras' own choice for all of these
    layers, but by NumPy: a run begins with the same weights on every backend of Keras."""
    generator = np.random.default_rng(seed)
    values = []
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) > 1:
            limit = np.sqrt(6.0 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
            values.append(generator.uniform(-limit, limit, shape).astype(np.float32))
        else:
            values.append(np.asarray(weight))
    model.set_weights(values)


def start_from(classifier: keras.Model, trained: keras.Model) -> int:
    """Give layers of `classifier` the weights of `trained`, in order, where the shapes agree; returns how many got
    theirs.

    Raises ValueError where the two are not the same network but for the last layer.
    """
    mine, theirs = ([layer for layer in model.layers if layer.weights] for model in (classifier, trained))
    shapes = [[tuple(w.shape) for layer in found for w in layer.weights] for found in (mine[:-1], theirs[:-1])]
    if shapes[0] != shapes[1]:
        raise ValueError("the network to start from has other layers; train one of this shape, or start from none")
    count = 0
    for layer, source in zip(mine, theirs, strict=True):
        if [tuple(w.shape) for w in layer.weights] == [tuple(w.shape) for w in source.weights]:
            layer.set_weights(source.get_weights())
            count += 1
    return count


_TURNS: tuple[tuple[bool, int], ...] = tuple((mirror, turns) for mirror in (False, True) for turns in range(4))
# the order in which orientations are taken: first opposite ones, then the quarter turns, then the mirrored
_ORIENTATIONS = {1: (0,), 2: (0, 2), 4: (0, 1, 2, 3), 8: tuple(range(8))}


def orientations_of(count: int) -> list[tuple[bool, int]]:
    """The (mirrored, quarter turns) that are averaged: the crop as it is comes first. Raises ValueError but for 1, 2,
    4, 8."""
    if count not in _ORIENTATIONS:
        raise ValueError(f"orientations must be 1, 2, 4 or 8, not {count}")
    return [_TURNS[index] for index in _ORIENTATIONS[count]]


@keras.saving.register_keras_serializable("labref")
class Orient(layers.Layer):
    """Turn [n, s, s, c] by `turns` × 90° after mirroring its columns if `mirror`; `inverse` undoes just that."""

    def __init__(self, mirror: bool, turns: int, inverse: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mirror, self.turns, self.inverse = mirror, turns, inverse

    def call(self, inputs: Any) -> Any:
        """Transpositions and flips only, which ONNX has."""
        ops = keras.ops
        x = inputs
        if self.mirror and not self.inverse:
            x = ops.flip(x, axis=2)
        for _ in range((4 - self.turns) % 4 if self.inverse else self.turns):
            x = ops.flip(ops.transpose(x, (0, 2, 1, 3)), axis=1)
        if self.mirror and self.inverse:
            x = ops.flip(x, axis=2)
        return x

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Square images keep their shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "mirror": self.mirror, "turns": self.turns, "inverse": self.inverse}


def with_features(classifier: keras.Model) -> keras.Model:
    """The classifier with two outputs: probabilities float32[n, c], and features float32[n, h, w, c] at the break."""
    return keras.Model(classifier.input, [classifier.output, classifier.get_layer(BREAK).output], name="with_features")


def _over_orientations(classifier: keras.Model, x: Any, orientations: int) -> tuple[Any, Any]:
    """Probabilities, averaged over orientations of x [n, s, s, 3], and features, turned back and averaged. A classifier
    that looks at upright crops has them turned upright once."""
    both, upright = with_features(classifier), [layer for layer in classifier.layers if isinstance(layer, Upright)]
    for layer in upright:
        x, both = layer(x), keras.Model(layer.output, both.outputs)
    probabilities, features = [], []
    for number, (mirror, turns) in enumerate(orientations_of(orientations)):
        p, f = both(Orient(mirror, turns)(x) if number else x)
        probabilities.append(p)
        features.append(Orient(mirror, turns, inverse=True)(f) if number else f)
    if orientations == 1:
        return probabilities[0], features[0]
    return layers.Average()(probabilities), layers.Average()(features)


def build_oriented(classifier: keras.Model, orientations: int = 1) -> keras.Model:
    """Crops float32[n, s, s, 3] at the input size → probabilities float32[n, c] and features float32[n, h, w, c], as
    the trunk of `build_trunk` gives them."""
    inputs = keras.Input(classifier.input_shape[1:])
    return keras.Model(inputs, _over_orientations(classifier, inputs, orientations))


def build_feature_model(classifier: keras.Model, orientations: int = 1) -> keras.Model:
    """The features of `build_oriented` alone."""
    both = build_oriented(classifier, orientations)
    return keras.Model(both.input, both.output[1])


def build_trunk(classifier: keras.Model, orientations: int = 1) -> keras.Model:
    """The exported trunk: crops uint8[n, 256, 256, 3] → probabilities float32[n, c], features float32[n, h, w, 256].

    Rescaling to the input size is inside. With more than one orientation (2, 4 or 8 turns and mirrors) probabilities
    are averaged, and features turned back and averaged, so that a turned crop gives the turned features, exactly.
    """
    size = classifier.input_shape[1]
    crops = keras.Input((CROP_SIZE, CROP_SIZE, 3), dtype="uint8", name="crops")
    x = keras.ops.cast(crops, "float32")
    x = layers.Resizing(size, size, interpolation="bilinear")(x)
    probabilities, features = _over_orientations(classifier, x, orientations)
    outputs = {
        "probabilities": layers.Identity(name="probabilities")(probabilities),
        "features": layers.Identity(name="features", dtype="float32")(features),
    }
    return keras.Model(crops, outputs, name="trunk")


def orbit_matrix(side: int) -> NDArray[np.float32]:
    """float32[side², orbits] that averages a side×side grid over the orbits of the square's eight symmetries."""
    grid = np.arange(side * side).reshape(side, side)
    same = np.stack([np.rot90(g, k).ravel() for g in (grid, grid[:, ::-1]) for k in range(4)])
    names = same.min(axis=0)
    orbits = np.unique(names)
    matrix = (names[:, None] == orbits[None, :]).astype(np.float32)
    return np.asarray(matrix / matrix.sum(axis=0, keepdims=True), dtype=np.float32)


@keras.saving.register_keras_serializable("labref")
class OrbitPooling(layers.Layer):
    """[n, s, s, c] → [n, orbits × c]: the mean over cells of the grid that turns and mirrors carry into each other."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Keep the averaging matrix as a constant."""
        self.matrix = orbit_matrix(int(input_shape[1]))
        self.cells = int(input_shape[1]) * int(input_shape[2])
        self.channels = int(input_shape[3])

    def call(self, inputs: Any) -> Any:
        """One matrix product."""
        ops = keras.ops
        flat = ops.transpose(ops.reshape(inputs, (-1, self.cells, self.channels)), (0, 2, 1))
        pooled = ops.matmul(flat, ops.convert_to_tensor(self.matrix))
        return ops.reshape(pooled, (-1, self.channels * self.matrix.shape[1]))

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """[n, orbits × c]."""
        return (input_shape[0], orbit_matrix(int(input_shape[1])).shape[1] * int(input_shape[3]))


@keras.saving.register_keras_serializable("labref")
class Standardise(layers.Layer):
    """(x - mean) × scale, both fixed weights float32[d]: unlike Keras' Normalization it freezes into an ONNX graph."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Two weights that are not trained."""
        shape = (int(input_shape[-1]),)
        self.mean = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=shape, initializer="ones", trainable=False, name="scale")

    def call(self, inputs: Any) -> Any:
        """Standardised inputs."""
        return (inputs - self.mean) * self.scale


def build_vae_parts(
    feature_shape: tuple[int, int, int],
    config: VaeConfig,
    classes: int,
    mean: NDArray[np.float32],
    deviation: NDArray[np.float32],
    attributes: tuple[int, ...] = (),
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Encoder, decoder and heads of the VAE.

    encoder : features float32[n, h, w, c] → (mean float32[n, L], log-variance float32[n, L]).
    decoder : latent float32[n, L] → standardised pooled features float32[n, d].
    head : latent float32[n, L] → class probabilities, and logits float32[n, sum(attributes)] of expert attributes with
    so many values each (used only where `class_weight` or `attribute_weight` is above zero).
    mean, deviation : float32[d], by which pooled features are standardised inside the encoder.
    Dense layers of equal width with batch normalisation, ReLU and dropout (Keng 2017, the thesis' reference 41).
    """

    def hidden(x: Any) -> Any:
        for _ in range(config.layers):
            x = layers.Dense(config.width, use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
            x = layers.Dropout(config.dropout)(x)
        return x

    inputs = keras.Input(feature_shape, name="features")
    pooled = layers.Flatten()(inputs) if config.pooling == "flatten" else OrbitPooling()(inputs)
    standardise = Standardise(name="standardise")
    x = standardise(pooled)
    standardise.set_weights([mean, 1.0 / deviation])
    x = hidden(x)
    latent_mean = layers.Dense(config.latent_size, name="latent_mean")(x)
    latent_log_variance = layers.Dense(config.latent_size, name="latent_log_variance")(x)
    encoder = keras.Model(inputs, [latent_mean, latent_log_variance], name="encoder")
    latent = keras.Input((config.latent_size,), name="latent")
    decoder = keras.Model(latent, layers.Dense(len(mean))(hidden(latent)), name="decoder")
    head_in = keras.Input((config.latent_size,), name="latent")
    heads = [
        layers.Dense(classes, activation="softmax", name="classes")(head_in),
        layers.Dense(max(sum(attributes), 1), name="attributes")(head_in),
    ]
    head = keras.Model(head_in, heads, name="heads")
    return encoder, decoder, head
