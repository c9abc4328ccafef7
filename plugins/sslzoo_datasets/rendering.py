"""What does a scene look like? Spheres, cubes and cylinders on a plane, drawn by chance and rendered with numpy.

Two sizes, eight colors and two materials, with light, shadow and occlusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SHAPES = ("sphere", "cube", "cylinder")
COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
RGB = np.array(
    [
        [87, 87, 87],
        [173, 35, 35],
        [42, 75, 215],
        [29, 105, 20],
        [129, 74, 25],
        [129, 38, 192],
        [41, 208, 208],
        [255, 238, 51],
    ],
    np.float32,
) / np.float32(255)
RADII = (0.45, 0.8)  # small, large: half the side, the radius, half the height
FEWEST, MOST = 3, 10
REACH = 3.0  # centers lie in a square of twice this side
GAP = 0.15  # between the circles around two objects
EPS = np.float32(1e-3)


@dataclass(frozen=True)
class Layout:
    """What stands where: n objects, and the camera."""

    shape: NDArray[np.int64]
    color: NDArray[np.int64]
    metal: NDArray[np.bool_]
    radius: Array
    center: Array  # [n 3], z up
    turn: Array  # about the vertical, radians
    eye: Array  # [3]
    light: Array  # [3], a point

    @property
    def view(self) -> Array:
        """Right, up and forward of the camera: [3 3]."""
        forward = np.array([0.0, 0.0, 0.3], np.float32) - self.eye
        forward /= np.linalg.norm(forward)
        right = np.array([forward[1], -forward[0], 0.0], np.float32)
        right /= np.linalg.norm(right)
        x, y, z = forward
        up = np.array([right[1] * z, -right[0] * z, right[0] * y - right[1] * x], np.float32)  # right x forward
        return np.stack([right, up, forward])

    @property
    def depth(self) -> Array:
        """Depth of each object's center along the view: [n]."""
        return (self.center - self.eye) @ self.view[2]


def draw(random: np.random.Generator) -> Layout:
    """A scene: number, kinds, positions that do not touch, camera and light."""
    n = int(random.integers(FEWEST, MOST + 1))
    shape = random.integers(0, 3, n)
    radius, center = _stand(random, shape)
    angle, height = random.uniform(0, 2 * np.pi), random.uniform(6.0, 7.0)
    away = random.uniform(6.8, 7.8)
    eye = np.array([away * np.cos(angle), away * np.sin(angle), height], np.float32)
    beside = angle + random.choice([-1, 1]) * random.uniform(0.6, 1.3)
    light = np.array([7 * np.cos(beside), 7 * np.sin(beside), random.uniform(7, 9)], np.float32)
    turn = random.uniform(0, np.pi / 2, n).astype(np.float32)
    return Layout(shape, random.integers(0, 8, n), random.random(n) < 0.5, radius, center, turn, eye, light)


def _stand(random: np.random.Generator, shape: NDArray[np.int64]) -> tuple[Array, Array]:
    """Sizes and positions of objects that do not touch; crowded scenes are drawn again, with fewer large objects."""
    n = len(shape)
    reach = np.where(shape == 1, np.float32(1.42), np.float32(1))  # a cube's corners reach further
    for attempt in range(16):
        large = random.random(n) < 0.5 * 0.85**attempt
        radius = np.where(large, *reversed(RADII)).astype(np.float32)
        plane = _spots(random.uniform(-REACH, REACH, (n, 48, 2)), radius * reach)
        if plane is not None:
            break
    else:  # never seen; small objects on a lattice always fit
        radius = np.full(n, RADII[0], np.float32)
        lattice = np.linspace(-REACH, REACH, 4)
        plane = np.stack(np.meshgrid(lattice, lattice), -1).reshape(-1, 2)[random.permutation(16)[:n]]
    return radius, np.concatenate([plane, radius[:, None]], 1).astype(np.float32)


def _spots(tries: NDArray[np.float64], around: Array) -> NDArray[np.float64] | None:
    """The first of each object's tries that keeps clear of those before it; None if one has none."""
    taken: list[list[float]] = []
    least = (around[:, None] + around + np.float32(GAP)).tolist()
    for k, spots in enumerate(tries):  # in plain numbers: one of the first tries mostly does
        others = list(zip(taken, least[k], strict=False))
        spot = next((one for one in spots.tolist() if _clear(one, others)), None)
        if spot is None:
            return None
        taken.append(spot)
    return np.array(taken)


def _clear(spot: list[float], others: list[tuple[list[float], float]]) -> bool:
    x, y = spot
    return all(math.sqrt((x - a) * (x - a) + (y - b) * (y - b)) > least for (a, b), least in others)


def render(scene: Layout, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture of a scene: uint8 [3 H W]."""
    rays = _rays(scene, size)
    depth = -scene.eye[2] / np.minimum(rays[2], -EPS)  # to the ground
    owner = np.full(size, -1)
    offset = scene.center - scene.eye
    along = (offset @ rays.reshape(3, -1)).reshape(-1, *size)
    near = (offset * offset).sum(1)[:, None, None] - along * along < (_around(scene) ** 2)[:, None, None]
    for k in range(len(scene.radius)):
        _meet(scene, k, near[k], rays, depth, owner)
    point = scene.eye[:, None, None] + depth * rays
    normal, color, shine = _surfaces(scene, point, owner)
    lit = _light(scene, point, normal, rays, shine, owner)
    flat = np.clip(color * lit[0] + lit[1], 0, 1)
    return (255 * np.sqrt(flat) + 0.5).astype(np.uint8)


def _rays(scene: Layout, size: tuple[int, int]) -> Array:
    """Unit directions of the pixels' centers: [3 H W]."""
    height, width = size
    half = np.float32(0.40)  # tangent of half the angle of view, of the shorter side
    scale = 2 * half / min(height, width)
    up = (height / 2 - 0.5 - np.arange(height, dtype=np.float32)) * scale
    right = (np.arange(width, dtype=np.float32) - width / 2 + 0.5) * scale
    view = scene.view
    rays = view[2][:, None, None] + up[None, :, None] * view[1][:, None, None] + right * view[0][:, None, None]
    return rays / np.sqrt((rays * rays).sum(0))


def _around(scene: Layout) -> Array:
    """Radii of spheres around the objects, whatever their shape: [n]."""
    return scene.radius * np.float32(1.75)


def _meet(scene: Layout, k: int, near: NDArray[np.bool_], rays: Array, depth: Array, owner: NDArray[np.int64]) -> None:
    """Where object k is the nearest thing met so far, writes its depth and its number; `near` it rays may meet it."""
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    start = scene.eye - scene.center[k]
    enter, leave = _interval(scene, k, start[:, None, None], rays[:, window[0], window[1]])
    closer = (enter < leave) & (enter > 0) & (enter < depth[window])
    depth[window][closer] = enter[closer]
    owner[window][closer] = k


def _interval(scene: Layout, k: int, start: Array, rays: Array) -> tuple[Array, Array]:
    """Where rays enter and leave object k; `start` is relative to its center. Enter >= leave: they miss it."""
    turn, radius = scene.turn[k], scene.radius[k]
    c, s = np.cos(turn), np.sin(turn)
    ox, oy, oz = (c * start[0] + s * start[1]) / radius, (c * start[1] - s * start[0]) / radius, start[2] / radius
    dx, dy, dz = (c * rays[0] + s * rays[1]) / radius, (c * rays[1] - s * rays[0]) / radius, rays[2] / radius
    shape = SHAPES[scene.shape[k]]
    if shape == "sphere":
        return _roots(dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1)
    enter, leave = _slab(oz, dz)
    if shape == "cylinder":
        sides = [_roots(dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - 1)]
    else:
        sides = [_slab(ox, dx), _slab(oy, dy)]
    for first, last in sides:
        enter, leave = np.maximum(enter, first), np.minimum(leave, last)
    return enter, leave


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Where a t^2 + 2 b t + c < 0: between its roots; an empty interval where there are none."""
    under = b * b - a * c
    root = np.sqrt(np.maximum(under, 0))
    a = np.maximum(a, np.float32(1e-9))
    return np.where(under > 0, (-b - root) / a, np.float32(1e9)), (-b + root) / a


def _slab(start: Array, ray: Array) -> tuple[Array, Array]:
    """Where a coordinate is between -1 and 1."""
    inverse = 1 / np.where(np.abs(ray) < 1e-9, np.float32(1e-9), ray)
    one, other = (-1 - start) * inverse, (1 - start) * inverse
    return np.minimum(one, other), np.maximum(one, other)


def _surfaces(scene: Layout, point: Array, owner: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Normal and color [3 H W], and gloss [H W], of what each pixel shows."""
    points, flat = point.reshape(3, -1), owner.ravel()
    normal = np.zeros_like(points)
    normal[2] = 1
    color, shine = np.full_like(points, 0.42), np.zeros(flat.shape, np.float32)
    for k in range(len(scene.radius)):
        here = np.flatnonzero(flat == k)  # numbers of pixels: faster than a mask over three planes
        if not len(here):
            continue
        c, s = np.cos(scene.turn[k]), np.sin(scene.turn[k])
        x, y, z = (points.take(here, 1) - scene.center[k][:, None]) / scene.radius[k]
        x, y = c * x + s * y, c * y - s * x
        x, y, z = _local_normal(SHAPES[scene.shape[k]], x, y, z)
        for row, value in enumerate((c * x - s * y, s * x + c * y, z)):
            normal[row, here] = value
            color[row, here] = RGB[scene.color[k], row] ** 2
        shine[here] = 1.0 if scene.metal[k] else 0.12
    return normal.reshape(point.shape), color.reshape(point.shape), shine.reshape(owner.shape)


def _local_normal(shape: str, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    if shape == "sphere":
        return x, y, z
    if shape == "cylinder":
        cap = np.abs(z) > np.sqrt(x * x + y * y)
        return np.where(cap, 0, x), np.where(cap, 0, y), np.where(cap, np.sign(z), 0)
    sides = np.abs(np.stack([x, y, z]))
    most = sides.max(0)
    return tuple(np.where(side == most, np.sign(one), 0) for side, one in zip(sides, (x, y, z), strict=True))  # type: ignore[return-value]


def _light(
    scene: Layout, point: Array, normal: Array, rays: Array, shine: Array, owner: NDArray[np.int64]
) -> tuple[Array, Array]:
    """What color is multiplied by, and what gloss adds: ambient and Lambert, Blinn and Phong; 0 in shadow."""
    to_light = scene.light[:, None, None] - point
    far = np.sqrt((to_light * to_light).sum(0))
    to_light /= far
    facing = np.maximum((normal * to_light).sum(0), 0)
    shadow = _shadow(scene, (point + normal * EPS * 5).astype(np.float32, copy=False), to_light, far)
    half = to_light - rays
    half /= np.sqrt((half * half).sum(0))
    gloss = np.maximum((normal * half).sum(0), 0) ** 40 * shine * (facing > 0)
    open_ = 1 - shadow
    ground = (owner < 0) * np.clip(1.25 - far / 22, 0.35, 1.1) + (owner >= 0) * np.float32(1)
    return (0.30 + 0.85 * facing * open_) * ground, 0.75 * gloss * open_


def _shadow(scene: Layout, point: Array, to_light: Array, far: Array) -> Array:
    """1 where an object stands between a point and the light: [H W]."""
    points, lights, distances = point.reshape(3, -1), to_light.reshape(3, -1), far.ravel()
    dark = np.zeros(distances.shape, bool)
    center, reach = scene.center, _around(scene)[:, None]
    # Of all objects at once: how far a point lies beyond each on its way to the light, and the square of its distance.
    along = (points * lights).sum(0) - center @ lights
    squares = (points * points).sum(0)
    apart = squares - 2 * (center @ points) + (center * center).sum(1)[:, None]
    slack = np.float32(1e-5) * squares  # what rounding may have taken
    close = (apart - along * along < reach * reach + slack) & (along < reach + slack)
    for k in range(len(scene.radius)):
        near = np.flatnonzero(close[k] & ~dark)
        if len(near):
            start = points.take(near, 1) - center[k][:, None]
            enter, leave = _interval(scene, k, start, lights.take(near, 1))
            dark[near] = (enter < leave) & (leave > EPS) & (enter < distances[near])
    return dark.reshape(far.shape).astype(np.float32)
