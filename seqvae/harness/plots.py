"""What needs axes: figures of latents and of attributes. The one module that knows matplotlib, which may be missing."""

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from seqvae.evaluation import Use
from seqvae.gaussian import DiagonalGaussian
from seqvae.priors import PriorDistribution
from seqvae.traversals import contour_levels, largest, principal_axes, two_of

MASSES = (0.99, 0.86, 0.39)  # of the prior within its contours: those of N(0, I) are circles of radius 3, 2, 1
SEEN = 0.005, 0.995  # quantiles of the points along each axis; what lies farther out may be cut off
CELLS = 120  # of the grid below the contours, along each side
BINS = 60
DARK = 70  # percent from which a cell of the table is too dark for black figures
OUTLINE: dict[str, Any] = {"histtype": "step", "color": "tab:blue"}
LEGEND: dict[str, Any] = {"loc": "upper right", "fontsize": "small", "frameon": False}
MOST_LABELS = 20  # that have a colour of their own
INK = 20_000  # square points that all dots of a panel cover together, unless they are very few or very many


def missing() -> bool:
    """Return whether matplotlib is not there."""
    return importlib.util.find_spec("matplotlib") is None


def require() -> None:
    """Raise ValueError, with the way to get it, where matplotlib is missing."""
    if missing():
        raise ValueError('a picture needs matplotlib; get it with: pip install "seqvae[plots]"')


def png(figure: Any) -> bytes:
    """Return the figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def pixels(figure: Any) -> NDArray[np.uint8]:
    """Return the figure as an array [height width 3]."""
    from matplotlib.backends import backend_agg

    canvas: Any = backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Cloud(NamedTuple):
    """Posterior means in a plane of latent space, and the prior beneath them."""

    title: str
    points: Float[Tensor, "n 2"]
    labels: Int[Tensor, " n"] | None  # -1 is none
    axes: Float[Tensor, "latent 2"]  # the plane's directions
    names: tuple[str, str]  # of these
    prior: PriorDistribution


def cloud(
    title: str,
    means: Float[Tensor, "n latent"],
    labels: Int[Tensor, " n"] | None,
    use: Use,
    prior: PriorDistribution,
    principal: bool = False,
) -> Cloud:
    """Return posterior means in the plane of the two dimensions of most use, or of the principal components.

    Raises:
        ValueError: with fewer than two dimensions.
    """
    dimensions = two_of(use.amount)
    if principal:
        axes, names = principal_axes(means), ("principal component 1", "principal component 2")
    else:
        axes = torch.eye(means.shape[1]).to(means)[:, dimensions]
        names = use.label(dimensions[0]), use.label(dimensions[1])
    return Cloud(title, means @ axes, labels, axes, names, prior)


def scatter(clouds: Sequence[Cloud], label_names: Sequence[str] = ()) -> Any:
    """Draw clouds side by side, each coloured by label, over the contours that hold 39, 86 and 99 % of the prior.

    Every panel is the smallest square that shows the outermost contour and 99 % of the points along each axis: one
    rule for all, while the numbers at their axes differ.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(5.2 * len(clouds) + 1.4, 5.2), layout="compressed")
    panels = figure.subplots(1, len(clouds), squeeze=False)[0]
    known = sorted({label for one in clouds if one.labels is not None for label in one.labels.tolist() if label >= 0})
    palette = matplotlib.colormaps["tab10" if len(known) <= 10 else "tab20"]
    colours = {label: palette(place) for place, label in enumerate(known)} if len(known) <= MOST_LABELS else {}
    generator = np.random.default_rng(0)
    for axes, one in zip(panels, clouds, strict=True):
        points = one.points.cpu().double().numpy()
        lower, upper = _contours(axes, one)
        dots = {"s": min(max(INK / max(len(points), 1), 1), 12), "linewidths": 0, "alpha": 0.7}
        labels = [] if one.labels is None or not colours else one.labels.tolist()
        inks = [colours.get(label, "lightgrey") for label in labels] or ["tab:blue"] * len(points)
        order = generator.permutation(len(points))  # in that of the labels the last would cover the others
        axes.scatter(*points[order].T, color=[inks[n] for n in order], **dots)
        axes.set(title=one.title, xlabel=one.names[0], ylabel=one.names[1], aspect="equal")
        axes.set(xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]))
    if colours:
        names = [label_names[label] if label < len(label_names) else str(label) for label in colours]
        handles = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in colours.values()]
        figure.legend(handles, names, loc="outside right center", frameon=False)
    return figure


@torch.no_grad()
def _contours(axes: Any, one: Cloud) -> tuple[list[float], list[float]]:
    """Draw the prior's contours; return the lower and the upper corner of the square that shows them and the points."""
    centre = one.prior.mean @ one.axes
    drawn = (one.prior.sample(4096, torch.Generator(centre.device).manual_seed(0)) @ one.axes - centre).abs()
    reach = 1.2 * float(torch.quantile(drawn, SEEN[1], dim=0).max())
    line = torch.linspace(-reach, reach, CELLS).to(centre)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1) + centre
    density = one.prior.projected_log_prob(grid.flatten(0, 1), one.axes).view(CELLS, CELLS)
    levels = sorted(set(contour_levels(one.prior, one.axes, MASSES).tolist()))
    x, y, height = (values.cpu().numpy() for values in (grid[..., 0], grid[..., 1], density))
    axes.contour(x, y, height, levels=levels, colors="black", linewidths=0.9, linestyles="dashed", zorder=3)
    low, high = torch.quantile(one.points.to(centre), torch.tensor(SEEN).to(centre), dim=0)
    low, high = torch.minimum(low, centre - reach), torch.maximum(high, centre + reach)
    middle, half = (low + high) / 2, 0.52 * (high - low).max()
    return (middle - half).tolist(), (middle + half).tolist()


@torch.no_grad()
def against_prior(
    posterior: DiagonalGaussian,
    use: Use,
    prior: PriorDistribution,
    title: str = "",
    each: int = 3,
    generator: torch.Generator | None = None,
) -> Any:
    """Draw the aggregate posterior against the prior: dimensions of the most and the least use, and |z|.

    Of a dimension: histograms of the posterior means and of a draw from every posterior, over the prior's density. Of
    |z|: a draw from every posterior, and as many from the prior.
    """
    from matplotlib.figure import Figure

    order = largest(use.amount, len(use.amount))
    rows = [order] if len(order) <= each else [order[:each], order[max(each, len(order) - each) :]]
    drawn = posterior.rsample(1, generator)[0]
    expected = prior.sample(len(drawn), generator)
    figure = Figure(figsize=(3.2 * (len(rows[0]) + 1), 2.6 * len(rows) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(rows), len(rows[0]) + 1)
    for y, row in enumerate(rows):
        for x, dimension in enumerate(row):
            axes = figure.add_subplot(grid[y, x], title=use.label(dimension))
            means, draws = posterior.mean[:, dimension], drawn[:, dimension]
            bins = _bins(torch.cat([means, draws, expected[:, dimension]]))
            axes.hist(means.cpu(), bins, density=True, color="tab:orange", alpha=0.45, label="means")
            axes.hist(draws.cpu(), bins, density=True, **OUTLINE, label="draws of q(z)")
            axis = torch.eye(len(order)).to(drawn)[:, [dimension]]
            density = prior.projected_log_prob(torch.tensor(bins).to(drawn).unsqueeze(-1), axis).exp().cpu()
            axes.plot(bins, density, "k--", label="p(z)")
            # means that all but agree would flatten everything else; where they are far away the density is 0
            axes.set_ylim(0, 2.5 * float(density.max()) or None)
    figure.axes[0].legend(**LEGEND)
    axes = figure.add_subplot(grid[:, -1], title="|z|")
    lengths, truth = drawn.norm(dim=1).cpu(), expected.norm(dim=1).cpu()
    bins = _bins(torch.cat([lengths, truth]))
    axes.hist(lengths, bins, density=True, **OUTLINE, label="draws of q(z)")
    axes.hist(truth, bins, density=True, **OUTLINE | {"color": "black", "linestyle": "dashed"}, label="draws of p(z)")
    axes.legend(**LEGEND)
    figure.suptitle(title)
    return figure


def _bins(values: Float[Tensor, " n"]) -> list[float]:
    """Return the edges of bins for all values, or where they are thousands all but the outermost."""
    ordered = values.cpu().sort().values
    cut = len(ordered) // 1000
    low, high = float(ordered[cut]), float(ordered[-1 - cut])
    return torch.linspace(low, high if low < high else low + 1, BINS).tolist()


def table(percent: Mapping[str, Mapping[str, float | None]]) -> Any:
    """Draw changes of attributes under vectors as colours with their numbers: red is more of an attribute."""
    from matplotlib.figure import Figure

    vectors, names = list(percent), list(next(iter(percent.values())))
    cells = [[math.nan if change is None else change for change in row.values()] for row in percent.values()]
    figure = Figure(figsize=(2.5 + 1.1 * len(names), 1.5 + 0.7 * len(vectors)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(cells, cmap="RdBu_r", vmin=-100, vmax=100, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(vectors)), vectors)
    axes.set_xlabel("attribute")
    axes.set_ylabel("vector")
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            if not math.isnan(value):
                colour = "white" if abs(value) > DARK else "black"
                axes.text(x, y, f"{value:+.0f}", ha="center", va="center", color=colour)
    figure.colorbar(image, label="change in percent")
    return figure
