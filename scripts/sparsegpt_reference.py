"""SparseGPT as its paper states it, in plain PyTorch: what our own is timed beside.

Source: Frantar, Alistarh, "SparseGPT", arXiv 2301.00774, Algorithm 1, unstructured, with masks of as
many columns as are updated together (its B = B_s = 128). Written from the paper's pseudo-code.
"""

import torch


def inverse_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper factor U of (gram + λI)⁻¹ = Uᵀ U; λ is `damping` times the mean of the diagonal."""
    damped = gram.clone()
    diagonal = damped.diagonal()
    dead = diagonal == 0
    diagonal += damping * diagonal.mean()
    diagonal[dead] = 1
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def prune(
    weight: torch.Tensor,
    gram: torch.Tensor,
    sparsity: float,
    block: int = 128,
    damping: float = 0.01,
) -> torch.Tensor:
    """weight [out, in], gram = X Xᵀ [in, in], both float32; returns the pruned weight [out, in]."""
    weight = weight.clone()
    columns = weight.shape[1]
    factor = inverse_factor(gram, damping)  # [in, in]
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        slab = weight[:, begin:end]
        score = (slab / factor.diagonal()[begin:end]).square()
        count = round(score.numel() * sparsity)
        is_pruned = torch.zeros_like(score, dtype=torch.bool)
        if count:
            is_pruned = score <= score.flatten().kthvalue(count).values
        errors = torch.empty_like(slab)
        for column in range(begin, end):
            here = column - begin
            kept = slab[:, here].masked_fill(is_pruned[:, here], 0)
            error = (slab[:, here] - kept) / factor[column, column]
            # With column itself: what it leaves there is `kept`.
            slab[:, here:] -= error.outer(factor[column, column:end])
            slab[:, here] = kept
            errors[:, here] = error
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return weight
