"""Synthetic but plausible blood cells, for the demo's analyser, and for tests without real cells.

A cell is painted as light through stained matter: every layer is a transmission per channel, so a stain
scales optical densities (Beer-Lambert). The effects of the optics come last (blur, contrast, vignetting, noise).
These cells are not meant for training or for judging a model. Their labels are the classes that were drawn.

    rng = numpy.random.default_rng(7)
    slide = make_slides(12, seed=7)[0]
    picture = draw_cell("neutrophil", OPTICS[slide.optics], slide, rng)   # uint8[363, 360, 3]
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["LABELS", "OPTICS", "SIZE", "Optics", "Slide", "draw_cell", "encode_jpeg", "make_slides"]

Floats: TypeAlias = NDArray[np.float32]
Colour: TypeAlias = tuple[float, float, float]

LABELS = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "ig",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
"""The eight classes that can be drawn; `ig` are immature granulocytes."""

SIZE = (363, 360)
"""Height and width of a drawn image, in pixels: what a CellaVision analyser exports."""

_CLEAR: Colour = (255.0, 230.0, 203.0)  # empty glass, as a CellaVision DM96 shows it


@dataclass(frozen=True)
class Optics:
    """The optics of one analyser.

    glass is the colour (RGB, 0-255) of empty glass; blur_px the standard deviation of the blur in pixels;
    sharpen the per cent of unsharp masking; contrast scales optical density; vignetting is the share of light
    lost in a corner; noise the standard deviation of the sensor's noise in grey levels.
    """

    name: str
    glass: Colour
    blur_px: float
    sharpen: int
    contrast: float
    vignetting: float
    noise: float


OPTICS: dict[str, Optics] = {
    "warm": Optics("warm", _CLEAR, 0.7, 40, 1.0, 0.02, 1.2),
    "cool": Optics("cool", (228.0, 224.0, 238.0), 1.35, 0, 0.8, 0.12, 2.2),
}
"""The two analysers of the demo, by name: a crisp warm one, and a softer, cooler one with vignetting."""


@dataclass(frozen=True)
class Slide:
    """One smear. All its cells share its stain.

    stain scales the optical density per channel (RGB); red_cells is how many red cells lie in a picture;
    red_radius_px their mean radius in pixels; pallor (0-1) how pale their middle is; tint (grey levels) adds
    to the glass.
    """

    name: str
    optics: str
    stain: Colour
    red_cells: int
    red_radius_px: float
    pallor: float
    tint: Colour


def make_slides(n: int = 12, *, seed: int = 0) -> list[Slide]:
    """`n` smears with their own stain, crowding and red cells, in turn from each of `OPTICS`; seeded."""
    rng = np.random.default_rng([seed, 0x51DE])
    names = tuple(OPTICS)
    slides = []
    for i in range(n):
        strength = rng.uniform(0.86, 1.16)
        stain = strength * rng.uniform(0.93, 1.07, 3)
        tint = rng.uniform(-3.0, 3.0, 3)
        slides.append(
            Slide(
                name=f"S{seed % 100:02d}-{i + 1:03d}",
                optics=names[i % len(names)],
                stain=(float(stain[0]), float(stain[1]), float(stain[2])),
                red_cells=int(rng.integers(9, 24)),
                red_radius_px=float(rng.uniform(36.0, 44.0)),
                pallor=float(rng.uniform(0.45, 1.0)),
                tint=(float(tint[0]), float(tint[1]), float(tint[2])),
            )
        )
    return slides


def draw_cell(label: str, optics: Optics, slide: Slide, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image with a cell of class `label` in its middle, red cells around it.

    Returns uint8[363, 360, 3], RGB. The same generator state gives the same picture. Raises ValueError for a
    class that is not in `LABELS`.
    """
    if label not in _PAINTERS:
        raise ValueError(f"no cell {label!r} can be drawn; the classes are {', '.join(LABELS)}")
    light = np.ones((*SIZE, 3), np.float32)
    centre = (SIZE[0] / 2 + rng.normal(0, 3.0), SIZE[1] / 2 + rng.normal(0, 3.0))
    radius = _RADII[label] * rng.normal(1.0, 0.07)
    _paint_red_cells(light, slide, centre, radius, rng)
    _paint_stray_platelets(light, centre, radius, rng)
    _PAINTERS[label](light, centre, radius, rng)
    return _through_optics(light, optics, slide, rng)


def encode_jpeg(picture: NDArray[np.uint8], *, quality: int = 92) -> bytes:
    """A picture (uint8[h, w, 3]) as the bytes of a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return out.getvalue()


# --- shapes and textures: float32 fields over a square window around a cell ---


@dataclass(frozen=True)
class _Window:
    """A square of the picture: `rows`, `columns` cut it out; `y`, `x` are pixels from the cell's centre."""

    rows: slice
    columns: slice
    y: Floats
    x: Floats

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]


def _window(centre: tuple[float, float], half: float) -> _Window | None:
    top, left = max(0, int(centre[0] - half)), max(0, int(centre[1] - half))
    bottom, right = min(SIZE[0], int(centre[0] + half) + 1), min(SIZE[1], int(centre[1] + half) + 1)
    if bottom <= top or right <= left:
        return None
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(centre[0]))[:, None]
    x = (np.arange(left, right, dtype=np.float32) - np.float32(centre[1]))[None, :]
    return _Window(slice(top, bottom), slice(left, right), y, x)


def _noise(shape: tuple[int, int], grain_px: float, rng: np.random.Generator) -> Floats:
    """Smooth noise with mean 0 and deviation about 1, whose blobs are about `grain_px` wide."""
    rows, columns = int(shape[0] / grain_px) + 3, int(shape[1] / grain_px) + 3
    grid = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    field = np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return np.asarray(field * 1.35, np.float32)


def _outline(w: _Window, radius: float, wobble: float, rng: np.random.Generator, stretch: float = 1.0) -> Floats:
    """Distance to a roundish outline in pixels, negative inside: a circle with a few random harmonics."""
    turn = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = (c * w.x + s * w.y) / np.float32(stretch), (c * w.y - s * w.x) * np.float32(stretch)
    angle = np.arctan2(v, u)
    edge = np.ones_like(angle)
    for order in (2, 3, 4, 5):
        edge += np.float32(wobble / order * rng.normal()) * np.cos(order * angle + np.float32(rng.uniform(0, 7)))
    return np.asarray(np.hypot(u, v) - np.float32(radius) * edge, np.float32)


def _inside(distance: Floats, edge_px: float = 1.2) -> Floats:
    """1 inside, 0 outside, with a soft edge."""
    return np.asarray(np.clip(0.5 - distance / np.float32(2 * edge_px), 0, 1), np.float32)


def _merge(a: Floats, b: Floats, softness_px: float) -> Floats:
    """Union of two distance fields with a filleted seam (the polynomial smooth minimum)."""
    k = np.float32(softness_px)
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.asarray(np.minimum(a, b) - h * h * k / 4, np.float32)


def _disc(w: _Window, at: tuple[float, float], radius: float) -> Floats:
    return np.asarray(np.hypot(w.y - np.float32(at[0]), w.x - np.float32(at[1])) - np.float32(radius), np.float32)


def _bar(w: _Window, a: tuple[float, float], b: tuple[float, float], radius: float) -> Floats:
    """Distance to a bar with round ends from `a` to `b` (row, column), in pixels."""
    ay, ax, by, bx = a[0], a[1], b[0] - a[0], b[1] - a[1]
    along = ((w.y - ay) * by + (w.x - ax) * bx) / max(by * by + bx * bx, 1e-6)
    along = np.clip(along, 0, 1)
    return np.asarray(np.hypot(w.y - ay - along * by, w.x - ax - along * bx) - radius, np.float32)


def _chain(w: _Window, points: list[tuple[float, float]], radii: list[float], bridge: float) -> Floats:
    """Lobes (discs) at `points` joined by bridges of half-width `bridge` pixels: a segmented nucleus."""
    field = _disc(w, points[0], radii[0])
    for i in range(1, len(points)):
        field = _merge(field, _bar(w, points[i - 1], points[i], bridge), 5)
        field = _merge(field, _disc(w, points[i], radii[i]), 5)
    return field


def _arc(radius: float, start: float, sweep: float, n: int, squash: float) -> list[tuple[float, float]]:
    """`n` points (row, column) along an arc around the cell's middle, in pixels and radians."""
    return [
        (radius * squash * float(np.sin(a)), radius * float(np.cos(a))) for a in np.linspace(start, start + sweep, n)
    ]


def _dots(w: _Window, where: Floats, share: float, size_px: float, rng: np.random.Generator) -> Floats:
    """Granules (0-1) over `where`: a `share` of its pixels seeds a round grain `size_px` in radius."""
    seeds = (rng.random(w.shape, np.float32) < share * where).astype(np.float32)
    grains = scipy.ndimage.gaussian_filter(seeds, size_px / 1.5, truncate=2.5)
    return np.asarray(np.clip(grains * np.float32(4.2 * size_px * size_px) - 0.5, 0, 1), np.float32)


# --- paint ---


def _transmission(rgb: Colour) -> Floats:
    """A colour (0-255) as seen on the warm optics, as light that passes (0-1 per channel)."""
    return np.asarray([a / b for a, b in zip(rgb, _CLEAR, strict=True)], np.float32)


def _lay(light: Floats, w: _Window, cover: Floats, paint: Floats) -> None:
    """Cover the layers below with `paint` (float32[3] or float32[h, w, 3]); `cover` is its share, 0 to 1."""
    part = light[w.rows, w.columns]
    part += cover[..., None] * (paint - part)


def _between(light_paint: Colour, dark_paint: Colour, darkness: Floats) -> Floats:
    """float32[h, w, 3]: from the light to the dark colour by `darkness` (0-1, clipped), as densities."""
    a, b = np.log(_transmission(light_paint)), np.log(_transmission(dark_paint))
    return np.asarray(np.exp(a + np.clip(darkness, 0, 1)[..., None] * (b - a)), np.float32)


def _paint_red_cells(
    light: Floats, slide: Slide, centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> None:
    """Paint red cells all over the field, except on the white cell. Overlapping red cells are darker."""
    density = -np.log(_transmission((210.0, 173.0, 166.0)))
    layers = np.zeros(SIZE, np.float32)
    placed: list[tuple[float, float, float]] = []
    for _ in range(slide.red_cells * 6):
        if len(placed) >= slide.red_cells:
            break
        r = slide.red_radius_px * rng.normal(1.0, 0.08)
        at = (rng.uniform(-25, SIZE[0] + 25), rng.uniform(-25, SIZE[1] + 25))
        if np.hypot(at[0] - centre[0], at[1] - centre[1]) < radius + r * rng.uniform(0.92, 1.15):
            continue
        closeness = 1.75 if rng.random() < 0.8 else 1.2
        if any(np.hypot(at[0] - y, at[1] - x) < closeness * (r + q) / 2 for y, x, q in placed):
            continue
        placed.append((at[0], at[1], r))
    for y, x, r in placed:
        w = _window((y, x), r * 1.35)
        if w is None:
            continue
        d = _outline(w, r, 0.07, rng, stretch=float(rng.uniform(1.0, 1.1)))
        depth = np.clip(1 + d / np.float32(r), 0, 1)  # 0 in the middle, 1 at the rim
        width = np.float32(rng.uniform(0.4, 0.66))
        pallor = np.float32(min(0.96, slide.pallor * rng.uniform(0.55, 1.15)))
        thickness = 1 - pallor * np.exp(-((depth / width) ** 4))
        thickness *= np.float32(rng.uniform(0.85, 1.1)) * (0.9 + 0.12 * depth)
        layers[w.rows, w.columns] += thickness * _inside(d, 1.6)
    layers -= 0.45 * np.maximum(layers - 1.0, 0)  # overlapping cells are thinner where they touch
    light *= np.exp(-layers[..., None] * density)


def _paint_stray_platelets(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    for _ in range(rng.poisson(0.7)):
        at = (rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]))
        r = rng.uniform(7, 13)
        if np.hypot(at[0] - centre[0], at[1] - centre[1]) > radius + 1.6 * r:
            _platelet(light, at, r, rng)


def _nucleus(
    light: Floats,
    w: _Window,
    distance: Floats,
    rng: np.random.Generator,
    *,
    pale: Colour,
    dark: Colour,
    grain_px: float,
    density: float,
    clumps: float,
) -> Floats:
    """Paints a nucleus: chromatin in grains around `density` (0 pale, 1 dark), denser along its membrane."""
    cover = _inside(distance, 1.1)
    chromatin = _noise(w.shape, grain_px, rng) + 0.6 * _noise(w.shape, grain_px * 2.2, rng)
    membrane = np.exp(-(((distance + 2.0) / 2.4) ** 2))
    darkness = density + clumps * chromatin + 0.5 * membrane
    _lay(light, w, cover, _between(pale, dark, darkness))
    return cover


def _cytoplasm(
    light: Floats,
    w: _Window,
    distance: Floats,
    rng: np.random.Generator,
    *,
    pale: Colour,
    dark: Colour,
    grain_px: float,
) -> Floats:
    """Paints a cell's body, a little denser along its edge."""
    cover = _inside(distance, 1.3)
    darkness = 0.42 + 0.2 * _noise(w.shape, grain_px, rng) + 0.16 * _noise(w.shape, 22.0, rng)
    darkness += 0.35 * np.exp(-(((distance + 1.5) / 2.5) ** 2))
    _lay(light, w, cover, _between(pale, dark, darkness))
    return cover


def _warp(w: _Window, distance: Floats, amount_px: float, grain_px: float, rng: np.random.Generator) -> Floats:
    """The same outline, made uneven by about `amount_px`."""
    return distance + np.float32(amount_px) * _noise(w.shape, grain_px, rng)


_INK: Colour = (64.0, 25.0, 126.0)
_VIOLET: Colour = (124.0, 72.0, 148.0)


def _cell_window(centre: tuple[float, float], radius: float) -> _Window:
    w = _window(centre, radius * 1.45 + 4)
    if w is None:
        raise ValueError(f"no part of a cell at {centre} lies in the picture")
    return w


def _neutrophil(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.05, rng), 0.9, 14, rng)
    cover = _cytoplasm(light, w, body, rng, pale=(230.0, 196.0, 190.0), dark=(196.0, 150.0, 172.0), grain_px=4)
    _lay(light, w, 0.55 * _dots(w, cover, 0.05, 1.2, rng), _transmission((160.0, 106.0, 158.0)))
    start, squash = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0)
    if rng.random() < 0.25:  # a band: one thick curved rod
        points = _arc(radius * 0.46, start, rng.uniform(2.6, 4.2), 9, squash)
        shape = _chain(w, points, [radius * rng.uniform(0.2, 0.24)] * 9, radius * 0.19)
    else:
        n = int(rng.choice([2, 3, 3, 4, 4, 5]))
        points = _arc(radius * rng.uniform(0.44, 0.54), start, rng.uniform(1.15, 1.5) * (n - 1), n, squash)
        radii = [radius * r for r in rng.uniform(0.22, 0.31, n) * (1.28 if n < 3 else 1.0)]
        shape = _chain(w, points, radii, rng.uniform(2.0, 5.0))
    shape = _warp(w, shape, 1.9, 13, rng)
    _nucleus(light, w, shape, rng, pale=_VIOLET, dark=_INK, grain_px=4.5, density=0.8, clumps=0.3)


def _eosinophil(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.06, rng), 1.2, 10, rng)
    cover = _cytoplasm(light, w, body, rng, pale=(206.0, 158.0, 166.0), dark=(184.0, 120.0, 150.0), grain_px=4)
    grains = _dots(w, cover, 0.14, 1.5, rng)
    shade = _between((204.0, 128.0, 138.0), (168.0, 86.0, 126.0), 0.4 + 0.35 * _noise(w.shape, 5, rng))
    _lay(light, w, np.clip(0.45 * cover + 0.5 * grains, 0, 0.95) * _inside(body + 1.5), shade)
    turn = rng.uniform(0, 2 * np.pi)
    apart = radius * rng.uniform(0.36, 0.46)
    n = 2 if rng.random() < 0.85 else 3
    points = _arc(
        apart * (1 if n == 2 else 1.15), turn, np.pi * (1.0 if n == 2 else 1.1) * rng.uniform(0.75, 1), n, 1.0
    )
    radii = [radius * r for r in rng.uniform(0.35, 0.43, n) * (1.0 if n == 2 else 0.8)]
    shape = _warp(w, _chain(w, points, radii, rng.uniform(2.5, 6.0)), 1.8, 14, rng)
    _nucleus(
        light,
        w,
        shape,
        rng,
        pale=(130.0, 84.0, 160.0),
        dark=(70.0, 28.0, 134.0),
        grain_px=4.5,
        density=0.68,
        clumps=0.3,
    )


def _basophil(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.08, rng), 1.6, 9, rng)
    cover = _cytoplasm(light, w, body, rng, pale=(198.0, 156.0, 180.0), dark=(140.0, 88.0, 152.0), grain_px=5)
    n = int(rng.integers(2, 4))
    points = _arc(radius * 0.33, rng.uniform(0, 2 * np.pi), rng.uniform(2.0, 3.4), n, 0.9)
    shape = _chain(w, points, [radius * r for r in rng.uniform(0.42, 0.54, n)], radius * 0.28)
    shape = _warp(w, shape, 3.0, 13, rng)
    _nucleus(
        light,
        w,
        shape,
        rng,
        pale=(136.0, 90.0, 158.0),
        dark=(74.0, 34.0, 134.0),
        grain_px=6,
        density=0.55,
        clumps=0.26,
    )
    grains = _dots(w, cover, rng.uniform(0.016, 0.045), rng.uniform(1.9, 2.6), rng)
    _lay(light, w, 0.85 * grains, _transmission((70.0, 24.0, 124.0)))


def _lymphocyte(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    large = rng.random() < 0.3
    radius *= 1.22 if large else 1.0
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.09, rng), 2.2, 15, rng)
    _cytoplasm(light, w, body, rng, pale=(192.0, 178.0, 196.0), dark=(120.0, 104.0, 164.0), grain_px=5)
    shift = radius * (0.14 if large else 0.05)
    moved = _shifted(w, rng.normal(0, shift), rng.normal(0, shift))
    shape = _warp(w, _outline(moved, radius * rng.uniform(0.76, 0.9), 0.06, rng), 1.6, 16, rng)
    shape = np.maximum(shape, body + 2.0)
    _nucleus(
        light,
        w,
        shape,
        rng,
        pale=(122.0, 74.0, 150.0),
        dark=(66.0, 27.0, 124.0),
        grain_px=6.5,
        density=0.72,
        clumps=0.22,
    )


def _erythroblast(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.08, rng), 1.2, 18, rng)
    old = rng.random()  # the older, the more haemoglobin: from blue-grey to the red cells' own colour
    pale = tuple(a + old * (b - a) for a, b in zip((170.0, 156.0, 182.0), (228.0, 194.0, 184.0), strict=True))
    dark = tuple(a + old * (b - a) for a, b in zip((128.0, 110.0, 162.0), (190.0, 158.0, 168.0), strict=True))
    _cytoplasm(light, w, body, rng, pale=(pale[0], pale[1], pale[2]), dark=(dark[0], dark[1], dark[2]), grain_px=7)
    away = radius * 0.16
    moved = _shifted(w, rng.normal(0, away), rng.normal(0, away))
    shape = _warp(w, _outline(moved, radius * rng.uniform(0.54, 0.72), 0.04, rng), 0.7, 12, rng)
    _nucleus(
        light,
        w,
        shape,
        rng,
        pale=(100.0, 66.0, 146.0),
        dark=(54.0, 26.0, 118.0),
        grain_px=6,
        density=0.78,
        clumps=0.3,
    )


def _monocyte(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.12, rng), 2.6, 34, rng)
    cover = _cytoplasm(light, w, body, rng, pale=(204.0, 184.0, 196.0), dark=(150.0, 132.0, 178.0), grain_px=3.5)
    _lay(light, w, 0.3 * _dots(w, cover, 0.03, 1.1, rng), _transmission((140.0, 96.0, 164.0)))
    holes = _dots(w, cover * _inside(body + 8), float(rng.choice([0.0, 0.0006, 0.0015])), 3.2, rng)
    _lay(light, w, 0.8 * holes, _transmission((244.0, 220.0, 202.0)))
    turn = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.35:  # horseshoe
        points = _arc(radius * 0.40, turn, rng.uniform(2.8, 3.8), 7, rng.uniform(0.8, 1))
        shape = _chain(w, points, [radius * rng.uniform(0.24, 0.32)] * 7, radius * 0.24)
    else:  # kidney
        shape = _outline(w, radius * rng.uniform(0.62, 0.72), 0.08, rng, stretch=float(rng.uniform(1.0, 1.15)))
        bite_at = (radius * 0.72 * float(np.sin(turn)), radius * 0.72 * float(np.cos(turn)))
        shape = -_merge(-shape, _disc(w, bite_at, radius * rng.uniform(0.2, 0.42)), 12)
    shape = np.maximum(_warp(w, shape, 2.6, 20, rng), body + 4)
    _nucleus(
        light,
        w,
        shape,
        rng,
        pale=(142.0, 94.0, 164.0),
        dark=(80.0, 30.0, 138.0),
        grain_px=3.6,
        density=0.56,
        clumps=0.27,
    )


def _immature_granulocyte(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _cell_window(centre, radius)
    body = _warp(w, _outline(w, radius, 0.07, rng), 1.8, 20, rng)
    cover = _cytoplasm(light, w, body, rng, pale=(204.0, 174.0, 190.0), dark=(150.0, 118.0, 172.0), grain_px=4)
    _lay(
        light,
        w,
        0.6 * _dots(w, cover, rng.uniform(0.03, 0.09), 1.5, rng),
        _transmission((112.0, 56.0, 140.0)),
    )
    turn = rng.uniform(0, 2 * np.pi)
    away = radius * rng.uniform(0.12, 0.24)
    moved = _shifted(w, away * float(np.sin(turn)), away * float(np.cos(turn)))
    shape = _outline(moved, radius * rng.uniform(0.62, 0.72), 0.06, rng, stretch=float(rng.uniform(1.0, 1.14)))
    if rng.random() < 0.35:  # a metamyelocyte's shallow dent
        bite_at = (-radius * 0.75 * float(np.sin(turn)), -radius * 0.75 * float(np.cos(turn)))
        shape = -_merge(-shape, _disc(w, bite_at, radius * rng.uniform(0.2, 0.36)), 14)
    shape = np.maximum(_warp(w, shape, 1.8, 20, rng), body + 3)
    nucleus = _nucleus(
        light,
        w,
        shape,
        rng,
        pale=(140.0, 88.0, 164.0),
        dark=(72.0, 28.0, 136.0),
        grain_px=4.6,
        density=0.62,
        clumps=0.25,
    )
    _lay(light, w, 0.35 * _dots(w, nucleus, 0.02, 1.4, rng), _transmission((70.0, 24.0, 122.0)))


def _platelet(light: Floats, centre: tuple[float, float], radius: float, rng: np.random.Generator) -> None:
    w = _window(centre, radius * 1.7 + 4)
    if w is None:
        return
    body = _warp(w, _outline(w, radius, 0.14, rng), radius * 0.06, 7, rng)
    cover = _cytoplasm(light, w, body, rng, pale=(196.0, 168.0, 192.0), dark=(148.0, 116.0, 174.0), grain_px=4)
    middle = np.clip(-body / np.float32(radius * 0.45), 0, 1)
    grains = np.clip(_dots(w, cover * middle, 0.16, 1.5, rng) + 0.3 * middle, 0, 1)
    shade = _between((150.0, 96.0, 164.0), (88.0, 34.0, 138.0), 0.5 + 0.4 * _noise(w.shape, 4, rng))
    _lay(light, w, 0.85 * grains, shade)


def _shifted(w: _Window, rows_px: float, columns_px: float) -> _Window:
    return _Window(w.rows, w.columns, w.y - np.float32(rows_px), w.x - np.float32(columns_px))


_RADII = {
    "basophil": 62.0,
    "eosinophil": 66.0,
    "erythroblast": 42.0,
    "ig": 74.0,
    "lymphocyte": 48.0,
    "monocyte": 78.0,
    "neutrophil": 68.0,
    "platelet": 29.0,
}

_PAINTERS: dict[str, Callable[[Floats, tuple[float, float], float, np.random.Generator], None]] = {
    "basophil": _basophil,
    "eosinophil": _eosinophil,
    "erythroblast": _erythroblast,
    "ig": _immature_granulocyte,
    "lymphocyte": _lymphocyte,
    "monocyte": _monocyte,
    "neutrophil": _neutrophil,
    "platelet": _platelet,
}


def _through_optics(light: Floats, optics: Optics, slide: Slide, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture that the analyser's camera takes of the light: stain, glass, vignetting, blur, noise."""
    power = np.asarray(slide.stain, np.float32) * np.float32(optics.contrast)
    seen = np.clip(light, 1e-3, 1.0) ** power
    seen *= np.asarray(optics.glass, np.float32) + np.asarray(slide.tint, np.float32)
    if optics.vignetting:
        y = np.linspace(-1, 1, SIZE[0], dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, SIZE[1], dtype=np.float32)[None, :]
        seen *= (1 - np.float32(optics.vignetting / 2) * (y * y + x * x))[..., None]
    noise = rng.standard_normal(SIZE, np.float32) * np.float32(optics.noise)
    picture = Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(optics.blur_px))
    if optics.sharpen:
        picture = picture.filter(ImageFilter.UnsharpMask(radius=2, percent=optics.sharpen, threshold=2))
    return np.clip(np.asarray(picture, np.float32) + noise[..., None], 0, 255).astype(np.uint8)
