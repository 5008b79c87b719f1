# %% [markdown]
# # Quickstart
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tlv-jax/tlv_jax/blob/main/notebooks/quickstart.ipynb)
#
# Pretrained weights exist for some architectures only. This notebook imports a pretrained network,
# carries its weights into another architecture, and measures whether that helps.

# %%
import importlib.util

# Colab's own JAX stays as it is.
if importlib.util.find_spec("tlv_jax") is None:
    # %pip install -q "tlv-jax[demo] @ git+https://github.com/tlv-jax/tlv_jax"
    importlib.invalidate_caches()
if importlib.util.find_spec("skimage") is None:
    # %pip install -q scikit-image
    importlib.invalidate_caches()

# %%
import dataclasses
from pathlib import Path

import jax
import numpy as np
import skimage.data
from elpv_dataset.utils import load_dataset
from IPython.display import Markdown
from PIL import Image
from rich.console import Console

import importers
import tlv_jax
import train.compare
from tlv_jax import models, plots

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"dpi": 100}
print(f"{jax.device_count()} x {jax.devices()[0].platform}")

# %% [markdown]
# ## A pretrained network
#
# `importers.load` knows all classifiers of torchvision by name, and downloads their weights.
# EfficientNet-Lite0 needs no download: its weights came with pip.

# %%
try:
    source_name = "efficientnet_b0"
    source = importers.load(source_name)
except importers.DownloadError:
    source_name = "efficientnet_lite0"
    source = importers.load(source_name)
    print("no download: this runs without a network")
print(f"source: {source_name}")

# %%
cat = Image.fromarray(skimage.data.chelsea())
logits = source.model.apply(source.variables, source.preprocess(cat))[0]
for number in np.argsort(logits)[:-4:-1]:
    print(f"{jax.nn.softmax(logits)[number]:.2f}  {source.categories[number]}")
cat.resize((226, 150))

# %% [markdown]
# ## Another network, and other images
#
# The images are photographs of solar cells, functional or defective. The target is a MobileNetV2
# for these two classes. It stands for a network of yours that nobody has weights for.

# %%
pixels, defects, _ = load_dataset()
photographs = [Image.fromarray(image) for image in pixels]
labels = (defects > 0.5).astype(int)
print(f"{len(labels)} photographs, {labels.mean():.0%} of them are defective")

preprocess = dataclasses.replace(source.preprocess, resize=48, crop=48)
images = preprocess(photographs[::41])  # normalized as the source expects
print(images.shape)

shown = [*np.flatnonzero(labels == 0)[:4], *np.flatnonzero(labels == 1)[:4]]
Image.fromarray(np.hstack([pixels[number][::3, ::3] for number in shown]))

# %%
model = models.create("mobilenet_v2", num_classes=2)
variables = jax.jit(model.init)(jax.random.key(0), images[:1])

src = source.network
dst = tlv_jax.trace(model.apply, variables, images[:1])
print(src)
print(dst)
print(f"similarity {tlv_jax.similarity(src, dst):.2f}: below 0.5 a transfer mostly hurts")

# %% [markdown]
# ## The plan
#
# A plan says who gives what to whom. It is made of shapes alone, before any weight is read.

# %%
plan = tlv_jax.plan_transfer(src, dst)
lines = str(plan).splitlines()
print("\n".join([*lines[:14], "...", *lines[lines.index("") :]]))

# %%
plots.plan(plan, src, dst)

# %% [markdown]
# ## The transfer
#
# It returns new variables, of the target's structure and shapes. `tlv_jax.transfer(src, dst)` does
# both steps at once.

# %%
transferred = tlv_jax.apply_transfer(plan, jax.random.key(1), src, dst)
plots.first_kernels(plan, src, dst, transferred)

# %% [markdown]
# ## A fit
#
# A transfer copies what kernels are. A fit solves for kernels by what they do: each is to compute
# what the source computes of some images. It needs no labels.

# %%
fitted = tlv_jax.fit(src, dst, images)

for name, start in (("own", variables), ("transferred", transferred), ("fitted", fitted)):
    response = jax.jit(model.apply)(start, images).std(0).mean()
    print(f"{name:12} logits vary by {response:.3f} between photographs")

# %% [markdown]
# ## Does it help?
#
# `train.compare` trains the target from several starts: He's initialization, the transfer, and the
# fit. All see the same few photographs, and are tested on others. This takes some minutes on a
# CPU. On a GPU, give it more seeds, epochs and images.

# %%
settings = train.compare.Settings(
    source=source_name,
    target="mobilenet_v2",
    dataset="elpv",
    train_images=320,
    image_size=48,
    methods=("he", "default", "fit"),
    seeds=3,
    learning_rates=(1e-3,),
    epochs=5,
    batch_size=32,
    out=Path("runs"),
)
comparison = train.compare.compare(settings, console=Console(quiet=True))
Markdown(str(comparison))

# %%
scores = {}
for row in comparison.rows:
    seeds = scores.setdefault(row.training.start, {})
    seeds.setdefault(row.training.seed, []).append(row.metrics["validation_balanced_accuracy"])
runs = {start: list(seeds.values()) for start, seeds in scores.items()}
plots.curves(runs, "balanced accuracy, validation images")

# %% [markdown]
# A network that guesses has a balanced accuracy of 0.5. A start that stays there has not begun to
# learn in so few steps. That says nothing about longer trainings.
#
# One seed says little, and so do three: another seed can turn the result around. One learning rate
# can favour one of the starts.
# [The study](https://github.com/tlv-jax/tlv_jax/blob/main/docs/study.md) has more seeds, rates and
# controls. In it a transfer helps some networks on some images, and others not at all.
#
# ## Further
#
# - [Your own network](https://github.com/tlv-jax/tlv_jax/blob/main/notebooks/your_own_network.ipynb),
#   in Linen, NNX or Equinox, and your own training loop.
# - [Choosing a source](https://github.com/tlv-jax/tlv_jax/blob/main/notebooks/choosing_a_source.ipynb)
#   for your images, before any training.
# - [Devices and checkpoints](https://github.com/tlv-jax/tlv_jax/blob/main/notebooks/devices_and_checkpoints.ipynb).
