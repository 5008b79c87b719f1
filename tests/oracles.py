"""Slow, obvious NumPy versions of what the library computes, to hold it to.

Decisions on the published code's quirks, where the oracle follows the library and not the code:

- Random choice is not modelled here; the library draws without replacement.
- Interleaved choice starts at rank 0 where starting at rank 1 would come out short.
- Two-tailed choice of an odd count takes its extra channel from the upper end when it keeps, and
  drops the last source channel when it places (as recorded).
- An axis that grows by an odd number has its extra row at the end.
- The inputs of a kernel of one pixel are ranked by their variance over all filters.
- Growing outputs while shrinking inputs places into the target's own kernel.
"""

import itertools

import numpy as np


def choose(variance, count, how):
    order = list(np.argsort(variance, kind="stable"))
    if how == "max":
        return order[len(order) - count :]
    if how == "min":
        return order[:count]
    if how == "two_tailed":
        return order[: count // 2] + order[len(order) - (count - count // 2) :]
    step = len(order) // count
    chosen = order[1::step][:count]
    return chosen if len(chosen) == count else order[0::step][:count]


def resize(kernel, spatial, pool):
    """`[*S, I, O] -> [*spatial, I, O]` for equal ranks, zero padding."""
    for axis, size in enumerate(spatial):
        window = kernel.shape[axis] - size + 1
        if window > 1:
            reduce = {"avg": np.mean, "max": np.max}[pool]
            slices = [
                reduce(np.take(kernel, range(i, i + window), axis), axis) for i in range(size)
            ]
            kernel = np.stack(slices, axis)
    for axis, size in enumerate(spatial):
        grow = size - kernel.shape[axis]
        if grow > 0:
            widths = [(0, 0)] * kernel.ndim
            widths[axis] = (grow // 2, grow - grow // 2)
            kernel = np.pad(kernel, widths)
    return kernel


def variance_rule(source, target, keep, remove, pool="avg"):
    """The variance rule with zero padding and without the shuffle, filter by filter."""
    *spatial, inputs, outputs = target.shape
    source = resize(source, spatial, pool)
    every, result = source, target.copy()
    places = list(range(outputs))
    if source.shape[-1] > outputs:
        variance = [source[..., o].var() for o in range(source.shape[-1])]
        source = source[..., choose(variance, outputs, keep)]
    elif source.shape[-1] < outputs:
        count = placed(source.shape[-1], remove)
        places = choose([target[..., o].var() for o in range(outputs)], count, remove)
    pointwise = int(np.prod(spatial)) == 1
    for o, place in enumerate(places):
        filter_ = source[..., o]
        if filter_.shape[-1] > inputs:
            pixels = every if pointwise else filter_
            variance = [np.take(pixels, i, len(spatial)).var() for i in range(filter_.shape[-1])]
            filter_ = filter_[..., choose(variance, inputs, keep)]
        slots = list(range(inputs))
        if filter_.shape[-1] < inputs:
            count = placed(filter_.shape[-1], remove)
            pixels = target if pointwise else target[..., place]
            variance = [np.take(pixels, i, len(spatial)).var() for i in range(inputs)]
            slots = choose(variance, count, remove)
        for i, slot in enumerate(slots):
            result[..., slot, place] = filter_[..., i]
    return result


def placed(count, remove):
    return count - count % 2 if remove == "two_tailed" and count > 1 else count


def best_alignment(scores):
    """The largest score of all assignments of sources to targets without crossings."""
    sources, targets = scores.shape
    options = itertools.product([None, *range(sources)], repeat=targets)
    return max(
        alignment_score(scores, chosen)
        for chosen in options
        if (used := [s for s in chosen if s is not None]) == sorted(used) and gapless(chosen)
    )


def gapless(chosen):
    """Whether the targets of each source stand in a row."""
    return all(
        chosen[j] == chosen[i]
        for i in range(len(chosen))
        for k in range(i, len(chosen))
        for j in range(i, k)
        if chosen[i] is not None and chosen[i] == chosen[k]
    )


def alignment_score(scores, chosen):
    total = 0.0
    for source in set(chosen) - {None}:
        targets = [j for j, s in enumerate(chosen) if s == source]
        span = max(targets) - min(targets) + 1
        total += sum(scores[source, j] for j in targets) / np.sqrt(span)
    return total


def weight_of(scores, pairs):
    """Sum of scores, each weighted by the distance of the two places."""
    m, n = scores.shape
    return sum(scores[i, j] * (1 - (i / m - j / n) ** 2) for i, j in pairs)


def bipartite_weight(scores):
    """The largest weight of all ways to give each source another target."""
    m, n = scores.shape
    return max(
        weight_of(scores, zip(range(m), order, strict=True))
        for order in itertools.permutations(range(n), m)
    )


def convolution(inputs, kernel, result_gradient, settings):
    """`lax.conv_general_dilated` and its gradients, `[N, *S, C]` by `[*K, C / groups, O]`."""
    strides, groups = settings["window_strides"], settings["feature_group_count"]
    stretched = np.zeros(
        (
            len(inputs),
            *(
                (n - 1) * d + 1
                for n, d in zip(inputs.shape[1:-1], settings["lhs_dilation"], strict=True)
            ),
            inputs.shape[-1],
        )
    )
    elements = (slice(None), *(slice(None, None, d) for d in settings["lhs_dilation"]))
    stretched[elements] = inputs
    widths = [(0, 0), *((max(low, 0), max(high, 0)) for low, high in settings["padding"]), (0, 0)]
    padded = np.pad(stretched, widths)
    crop = tuple(
        slice(max(-low, 0), n - max(-high, 0))
        for n, (low, high) in zip(padded.shape[1:-1], settings["padding"], strict=True)
    )
    read = padded[(slice(None), *crop)]
    result = np.zeros(result_gradient.shape)
    read_gradient, kernel_gradient = np.zeros(padded.shape), np.zeros(kernel.shape)
    for place in itertools.product(*map(range, kernel.shape[:-2])):
        seen = tuple(
            slice(at * spread, at * spread + (m - 1) * stride + 1, stride)
            for at, spread, stride, m in zip(
                place, settings["rhs_dilation"], strides, result.shape[1:-1], strict=True
            )
        )
        reads = np.split(read[(slice(None), *seen)], groups, axis=-1)
        for group, weights in enumerate(np.split(kernel[place], groups, axis=-1)):
            ins = slice(group * len(weights), (group + 1) * len(weights))
            outs = slice(group * weights.shape[1], (group + 1) * weights.shape[1])
            change = result_gradient[..., outs]
            result[..., outs] += reads[group] @ weights
            read_gradient[(slice(None), *crop)][(slice(None), *seen)][..., ins] += (
                change @ weights.T
            )
            kernel_gradient[place][:, outs] += np.tensordot(
                reads[group], change, (range(change.ndim - 1), range(change.ndim - 1))
            )
    kept = tuple(
        slice(max(low, 0), n - max(high, 0))
        for n, (low, high) in zip(padded.shape[1:-1], settings["padding"], strict=True)
    )
    return result, read_gradient[(slice(None), *kept)][elements], kernel_gradient


def standardized(features, others, weights, alike=False, centred=True):
    """Both by the weighted mean and deviation of the first; zero where nothing varies.

    `alike`: all are divided by the same number, which makes the mean variance 1.
    """
    mean = np.average(features, axis=0, weights=weights) * centred
    deviation = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    constant = features.max(0) == features.min(0)
    if alike:
        deviation[:] = np.sqrt(np.mean(deviation[~constant] ** 2))
    deviation[constant] = np.inf
    return (features - mean) / deviation, (others - mean) / deviation


def ridge_scores(features, labels, penalty, others, alike=False, intercept=True):
    """Class-balanced ridge regression: normal equations with a column of ones for the intercept.

    `[N, D], [N], [M, D] -> [M, K]`.
    """
    classes = np.unique(labels)
    weights = np.array([1 / (len(classes) * np.sum(labels == label)) for label in labels])
    features, others = standardized(features, others, weights, alike, intercept)
    targets = (labels[:, None] == classes).astype(float)
    if not intercept:
        weighted, targets = features.T @ np.diag(weights), targets - 1 / len(classes)
        free = penalty * np.eye(features.shape[1])
        return others @ np.linalg.solve(weighted @ features + free, weighted @ targets)
    design = np.hstack([features, np.ones((len(features), 1))])
    free = np.diag([penalty] * features.shape[1] + [0])  # the intercept is
    weighted = design.T @ np.diag(weights)
    solution = np.linalg.solve(weighted @ design + free, weighted @ targets)
    return np.hstack([others, np.ones((len(others), 1))]) @ solution


def left_out_scores(features, labels, penalty, folds, **options):
    """The scores of the examples of each fold by a classifier of the others, `[N, K]`."""
    scores = np.empty((len(labels), len(np.unique(labels))))
    for fold in set(folds):
        out = folds == fold
        scores[out] = ridge_scores(features[~out], labels[~out], penalty, features[out], **options)
    return scores


def cross_validated(features, labels, penalty, folds, **options):
    """Balanced accuracy of the examples of each fold by a classifier of the others."""
    scores = left_out_scores(features, labels, penalty, folds, **options)
    predicted = np.unique(labels)[scores.argmax(1)]
    return np.mean([np.mean(predicted[labels == c] == c) for c in np.unique(labels)])


def fitted_conv(reads, goal, prior, convolve, penalty):
    """The kernel and bias of a ridge regression, filter by filter.

    Args:
      reads: `[N, *size, C]`, what the conv reads.
      goal: `[N, *out, O]`, what it is to write.
      prior: `[*spatial, I, O]`.
      convolve: `(reads, kernel) -> [N, *out, O]`.
      penalty: relative to the mean variance of what is read.
    """
    *spatial, inputs, outputs = prior.shape
    kernel, bias = np.empty(prior.shape), np.empty(outputs)
    for o in range(outputs):
        columns = []  # what each weight of the filter sees: the conv with that weight alone
        for place in np.ndindex(*spatial, inputs):
            alone = np.zeros(prior.shape, np.float32)
            alone[(*place, o)] = 1
            columns.append(np.asarray(convolve(reads, alone), np.float64)[..., o].ravel())
        seen = np.stack(columns, 1)
        a, z = seen - seen.mean(0), goal[..., o].ravel() - goal[..., o].mean()
        start = prior[..., o].ravel().astype(np.float64)
        start = start * ((a @ start) @ z) / ((a @ start) @ (a @ start))
        weight = penalty * (a**2).mean(0).mean() * len(a)
        above = np.vstack([a, np.sqrt(weight) * np.eye(a.shape[1])])
        solved = np.linalg.lstsq(above, np.concatenate([z, np.sqrt(weight) * start]), rcond=None)[0]
        kernel[..., o] = solved.reshape(*spatial, inputs)
        bias[o] = goal[..., o].mean() - seen.mean(0) @ solved
    return kernel, bias
