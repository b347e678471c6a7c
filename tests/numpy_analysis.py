"""What `cm.analysis` measures, stated again in NumPy float64, matrix by matrix.

Sums and loops as the formulas have them, nothing shared with the library.
"""

import numpy as np
import scipy.linalg
from reference import svd_k


def svd(matrix):
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u, s, vh


def interference(matrices, k, normalise):
    total = 0.0
    for i, one in enumerate(matrices):
        for j, other in enumerate(matrices):
            if i != j:
                terms = []
                for x in (one, other):
                    _, s, vh = svd(x)
                    over = {"top": s[:k], "whole": s, "none": [1.0]}[normalise]
                    length = np.linalg.norm(over)
                    terms.append(np.diag(s[:k] / length if length else s[:k]) @ vh[:k])
                total += np.linalg.norm(terms[0] @ terms[1].T)
    return total


def reconstruction(matrices, k):
    return sum(np.linalg.norm(x - svd_k(x, k)) ** 2 for x in matrices)


def kept_energy(matrix, k):
    return np.linalg.norm(svd_k(matrix, k)) ** 2 / np.linalg.norm(matrix) ** 2


def effective_rank(matrix):
    p = svd(matrix)[1]
    p = p[p > 0] / p.sum()
    return np.exp(-(p * np.log(p)).sum())


def stable_rank(matrix):
    return np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2


def cosines(matrices):
    return np.array(
        [
            [(x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)) for y in matrices]
            for x in matrices
        ]
    )


def alignments(matrices, k):
    """From the principal angles."""
    rows = [svd(x)[2][:k].T for x in matrices]
    return np.array(
        [
            [np.mean(np.cos(scipy.linalg.subspace_angles(a, b)) ** 2) for b in rows]
            for a in rows
        ]
    )


def sti(matrices, k):
    factors = [svd(x) for x in matrices]
    u = np.hstack([u[:, :k] for u, _, _ in factors])
    v = np.hstack([vh[:k].T for _, _, vh in factors])
    s = np.diag(np.concatenate([s[:k] for _, s, _ in factors]))
    eye = np.eye(len(s))
    return np.abs((u.T @ u - eye) @ s @ (v.T @ v - eye)).sum()


def matrix_facts(matrices, shares, aligned):
    """Everything about the task vectors of one matrix, as an analysis has it."""
    size = min(matrices[0].shape)
    ks = [max(1, int(share * size + 1e-9)) for share in shares]
    total = sum(np.linalg.norm(x) ** 2 for x in matrices)
    left = np.array([reconstruction(matrices, k) for k in ks])
    count = len(matrices)
    return {
        "norm": [np.linalg.norm(x) for x in matrices],
        "singular_values": [svd(x)[1] for x in matrices],
        "kept_energy": [[kept_energy(x, k) for k in ks] for x in matrices],
        **{
            f"interference_{how}": [interference(matrices, k, how) for k in ks]
            for how in ("top", "whole", "none")
        },
        "reconstruction": left,
        "reconstruction_relative": left / total,
        "effective_rank": [effective_rank(x) for x in matrices],
        "stable_rank": [stable_rank(x) for x in matrices],
        "cosine": cosines(matrices),
        "alignment": alignments(matrices, max(1, int(aligned * size + 1e-9))),
        "sti": [
            sti(matrices, k) if count * k <= max(size, count) else np.nan for k in ks
        ],
    }


def leaf_facts(leaves, base):
    """Everything about one leaf: `leaves` are its versions in the experts."""
    wide = [np.asarray(x, np.float64).ravel() for x in leaves]
    base = np.asarray(base, np.float64).ravel()
    merged = sum(wide) / len(wide)
    norms = [np.linalg.norm(x) for x in wide]
    vectors = [x - base for x in wide]
    centred = [x - merged for x in wide]
    own = [np.linalg.norm(x) for x in vectors]
    return {
        "numbers": base.size,
        "norm": {
            "experts": norms,
            "merged": np.linalg.norm(merged),
            "base": np.linalg.norm(base),
        },
        "norm_ratio": np.linalg.norm(merged) / np.mean(norms),
        "scope": {
            "mean": {"experts": [x.mean() for x in wide], "merged": merged.mean()},
            "deviation": {"experts": [x.std() for x in wide], "merged": merged.std()},
        },
        "mean": {
            "norm": [np.linalg.norm(x) for x in centred],
            "cosine": cosines(centred),
        },
        "base": {
            "norm": own,
            "cosine": cosines(vectors),
            "norm_ratio": np.linalg.norm(merged - base) / np.mean(own),
        },
    }
