"""Train RobusTok: the 8x8 VQ grid with perturbed codes, or a small tokenizer of the correlation study.

    python recipes/train_robustok.py --work ~/.cache/frugal/training/robustok_64 --publish

Same data, loss, steps and seed as recipes/train_vq_grid.py, whose options it takes; only what the decoder is given differs.
"""
import torch

from frugal.visual_tokenizers.robustok import PerturbSchedule, scaled_delta
from train_vq_grid import arguments, train

NAME = "robustok_64"


def hook(schedule: PerturbSchedule, steps: int):
    """disturb(step) for `train_vq_grid.train`; a step's draws depend on the step alone, so that runs resume."""
    return lambda step: schedule.disturb(step / steps, torch.Generator().manual_seed(7_000_003 + step))


def main() -> None:
    parser = arguments()
    parser.set_defaults(name=NAME)
    parser.add_argument("--beta", type=float, default=PerturbSchedule.beta)
    parser.add_argument("--kind", default="nearest", choices=("nearest", "random", "gaussian"))
    given = parser.parse_args()
    schedule = PerturbSchedule(beta=given.beta, delta=scaled_delta(given.codebook_size), kind=given.kind)
    train(given, hook(schedule, given.steps), recipe="recipes/train_robustok.py", perturbation=vars(schedule))


if __name__ == "__main__":
    main()
