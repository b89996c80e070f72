"""Train the networks of GenSE (arXiv 2502.02942) on formant speech, one stage at a time.

    python recipes/train_gense.py --work ~/.cache/frugal/training/gense --stage all --publish

Stages: semantic, acoustic, judge, regression, tokens (the token pairs that the decoders learn from), n2s, s2s, no_prompt, one_stage.
One thread, about 20 CPU minutes in all. Every stage stops and resumes anywhere; data follow from the step's seed. The judge
is trained on clips of its own, so that it shares neither data nor seed with what it judges.
"""
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from gense_data import Pool
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from training import Plan, fit, halved, options, publish

from frugal.data.formant_speech import HELD_OUT
from frugal.models.quantizers import codebook_usage
from frugal.visual_tokenizers.gense import PARTS, ChainDecoder, chain_of
from frugal.visual_tokenizers.gense_audio import SPAN_DB
from frugal.visual_tokenizers.gense_baselines import Regression
from frugal.visual_tokenizers.gense_judge import Judge
from frugal.visual_tokenizers.gense_nets import AcousticCodec, SemanticTokenizer, load_net

CLIPS, JUDGE_FIRST, JUDGE_CLIPS, HELD = 6000, 500_000, 2500, 200
DRAWS = 4                                        # noisy versions of a clip among the token pairs
BATCH, TOKEN_BATCH, ALONE = 32, 48, 250          # steps that the codec trains without its quantizer
STEADY = 2.0                                     # weight of the same features under noise and another voice
STEPS = {"semantic": 800, "acoustic": 1200, "judge": 500, "regression": 700, "n2s": 1000, "s2s": 1600, "no_prompt": 1300, "one_stage": 1600}


def rng_of(step: int, salt: int) -> np.random.Generator:
    return np.random.default_rng([salt, step])


def held_out() -> tuple[Pool, torch.Tensor, torch.Tensor]:
    """Held-out clips, their clean frames and their noisy ones."""
    pool, index = Pool(HELD, HELD_OUT), np.arange(HELD)
    return pool, pool.clean(index), pool.noisy(index, rng_of(0, 99))


def other_voice(mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Frames as another voice would give them: the mel axis stretched by up to 12 %, the spectrum tilted by up to 3 dB."""
    bins = torch.arange(mel.shape[-1])
    stretch = 0.88 + 0.24 * torch.rand(len(mel), 1, generator=generator)
    place = (bins * stretch).clamp(max=mel.shape[-1] - 1.001)
    low, part = place.long()[:, None].expand_as(mel), (place % 1)[:, None]
    warped = mel.gather(-1, low) * (1 - part) + mel.gather(-1, low + 1) * part
    return warped + 0.3 * torch.randn(len(mel), 1, 1, generator=generator) * (bins / len(bins) - 0.5)


def semantic(args) -> None:
    pool, (held, clean, noisy) = Pool(CLIPS, 0, args.work), held_out()

    def loss(net, step, generator):
        rng = rng_of(step, 1)
        index = pool.draw(BATCH, rng)
        clean_mel, noisy_mel = pool.clean(index), other_voice(pool.noisy(index, rng), generator)
        steady, shaken = net.features(clean_mel), net.features(noisy_mel)
        want = pool.labels[index][:, 1::2].flatten()
        named = sum(F.cross_entropy(net.head(12 * found).float().flatten(0, 1), want) for found in (steady, shaken))
        apart = (shaken - steady.detach()).float().square().sum(-1).mean()
        return named / 2 + STEADY * apart, {"named": named.detach() / 2, "apart": apart.detach()}

    @torch.no_grad()
    def check(net):
        want = held.labels[:, 1::2]
        return {f"{name}_right": float((net.logits(mel).argmax(-1) == want).float().mean())
                for name, mel in (("clean", clean), ("noisy", noisy))}

    net = SemanticTokenizer()
    fit(net, loss, args.work / "semantic", Plan(args.steps, seed=1), check)
    with torch.no_grad():
        rng = rng_of(0, 2)
        mel = torch.cat([pool.clean(np.arange(min(1500, CLIPS))), pool.noisy(np.arange(min(1500, CLIPS)), rng)])
        features = net.features(mel).flatten(0, 1)[::2].numpy()
    silent = (torch.cat([pool.labels[:len(mel) // 2, 1::2]] * 2).flatten()[::2] == 0).numpy()
    fitted = KMeans(len(net.codebook), n_init=2, max_iter=40, random_state=0).fit(features, sample_weight=np.where(silent, 0.1, 1.0))
    net.codebook.copy_(torch.from_numpy(fitted.cluster_centers_))
    net = halved(net)
    with torch.no_grad():
        pair = [net.nearest(net.features(mel)) for mel in (clean, noisy)]
    metrics = check(net) | {"same_token_under_noise": float((pair[0] == pair[1]).float().mean()),
                            "perplexity": codebook_usage(pair[0], len(net.codebook))["perplexity"]}
    finish(args, "semantic", net, pool, metrics, {"clean_right": 0.88, "noisy_right": 0.75})


def acoustic(args) -> None:
    pool, (_held, clean, noisy) = Pool(CLIPS, 0, args.work), held_out()

    def loss(net, step, generator):
        rng = rng_of(step, 3)
        index = pool.draw(BATCH, rng)
        mel = pool.noisy(index, rng) if step % 4 == 0 else pool.clean(index)
        if step < ALONE:
            decoded, pull = net.decoder(net.quantizer.prepared(net.encoder(mel).float())), 0.0
        else:
            decoded, _, pull = net(mel)
        gap = (decoded.float() - mel).abs().mean()
        return gap + pull, {"db": SPAN_DB * gap.detach()}

    @torch.no_grad()
    def check(net):
        out = {f"{name}_db": SPAN_DB * float((net.decode(net.tokens(mel)) - mel).abs().mean()) for name, mel in (("clean", clean), ("noisy", noisy))}
        return out | {"perplexity": codebook_usage(net.tokens(clean), net.quantizer.codebook_size)["perplexity"]}

    net = AcousticCodec()
    fit(net, loss, args.work / "acoustic", Plan(args.steps, adam=3e-3, seed=2), check)
    metrics = check(halved(net))
    finish(args, "acoustic", net, pool, metrics | {"less_than_4_db": 4 - metrics["clean_db"]}, {"perplexity": 100, "less_than_4_db": 0})


def judge(args) -> None:
    pool, (held, clean, noisy) = Pool(JUDGE_CLIPS, JUDGE_FIRST, args.work), held_out()

    def loss(net, step, generator):
        rng = rng_of(step, 4)
        index = pool.draw(BATCH, rng)
        near, far = pool.noisy(index, rng, (20.0, 45.0)), pool.noisy(index, rng)
        near = near + 0.05 * torch.randn(near.shape, generator=generator)              # 1 dB: frames that no clip has exactly
        labels = pool.labels[index].flatten()
        strict, robust = (F.cross_entropy(net.hear(mel, name).float().flatten(0, 1), labels)
                          for mel, name in ((near, "strict"), (far, "robust")))
        voice = (net.speaker(near).float() - pool.speakers[index]).square().mean()
        return strict + robust + 3 * voice, {"strict": strict.detach(), "robust": robust.detach(), "voice": voice.detach()}

    @torch.no_grad()
    def check(net):
        out = {f"{name}_{kind}": float((net.hear(mel, name).argmax(-1) == held.labels).float().mean())
               for name in ("strict", "robust") for kind, mel in (("clean", clean), ("noisy", noisy))}
        gap = (net.speaker(clean) - held.speakers).square().mean(0) / held.speakers.square().mean(0)
        return out | {f"voice_{name}": 1 - float(value) for name, value in zip(("pitch", "formants", "tilt"), gap)}

    net = Judge()
    fit(net, loss, args.work / "judge", Plan(args.steps, adam=3e-3, seed=3), check)
    finish(args, "judge", net, pool, check(halved(net)), {"strict_clean": 0.88, "voice_pitch": 0.9, "voice_formants": 0.8})


def regression(args) -> None:
    pool, (_held, clean, noisy) = Pool(CLIPS, 0, args.work), held_out()

    def loss(net, step, generator):
        rng = rng_of(step, 5)
        index = pool.draw(BATCH, rng)
        gap = (net(pool.noisy(index, rng)).float() - pool.clean(index)).abs().mean()
        return gap, {"db": SPAN_DB * gap.detach()}

    @torch.no_grad()
    def check(net):
        return {"db": SPAN_DB * float((net(noisy) - clean).abs().mean()), "noisy_db": SPAN_DB * float((noisy - clean).abs().mean())}

    net = Regression()
    fit(net, loss, args.work / "regression", Plan(args.steps, adam=3e-3, seed=4), check)
    finish(args, "regression", net, pool, check(halved(net)), {})


@torch.no_grad()
def token_pairs(folder, pool: Pool, draws: int, salt: int) -> dict[str, torch.Tensor]:
    """Tokens of both kinds, clean (N, T) and noisy (draws, N, T), by the published tokenizers; kept in the work folder."""
    path = folder / f"tokens_{salt}.safetensors"
    if path.exists():
        return {name: t.long() for name, t in load_file(path).items()}
    say, sound = load_net("gense_semantic", SemanticTokenizer), load_net("gense_acoustic", AcousticCodec)
    index = np.array_split(np.arange(len(pool.audio)), max(1, len(pool.audio) // 100))
    def codes(mel):
        return say.nearest(say.features(mel)).short(), sound.tokens(mel).short()
    clean = [torch.cat(found) for found in zip(*[codes(pool.clean(part)) for part in index])]
    noisy = [[torch.cat(found) for found in zip(*[codes(pool.noisy(part, rng_of(draw, salt + n))) for n, part in enumerate(index)])] for draw in range(draws)]
    found = {"clean_semantic": clean[0], "clean_acoustic": clean[1],
             "noisy_semantic": torch.stack([pair[0] for pair in noisy]), "noisy_acoustic": torch.stack([pair[1] for pair in noisy])}
    save_file(found, path)
    return {name: t.long() for name, t in found.items()}


def tokens(args) -> None:
    token_pairs(args.work, Pool(CLIPS, 0, args.work), DRAWS, 1000)
    token_pairs(args.work, Pool(HELD, HELD_OUT), 1, 9_000_000)


def decoder(variant: str) -> Callable:
    def stage(args) -> None:
        pool = Pool(CLIPS, 0, args.work)
        pairs, held = token_pairs(args.work, pool, DRAWS, 1000), token_pairs(args.work, Pool(HELD, HELD_OUT), 1, 9_000_000)
        aim = "clean_semantic" if variant == "n2s" else "clean_acoustic"

        def chain(source, index, draw):
            parts = {kind: source[kind][draw, index] if kind.startswith("noisy") else source[kind][index] for kind in PARTS[variant] if kind != "bos"}
            return chain_of(variant, parts, source[aim][index])

        def loss(net, step, generator):
            index = torch.randint(CLIPS, (TOKEN_BATCH,), generator=generator)
            value, right = net.loss(chain(pairs, index, torch.randint(DRAWS, (TOKEN_BATCH,), generator=generator)))
            return value, {"right": right}

        @torch.no_grad()
        def check(net):
            index = torch.arange(HELD)
            value, right = net.loss(chain(held, index, torch.zeros_like(index)))
            return {"held_loss": float(value), "held_right": float(right)}

        net = ChainDecoder(variant)
        fit(net, loss, args.work / variant, Plan(args.steps, seed=10 + list(PARTS).index(variant), ema=0.99), check)
        finish(args, variant, net, pool, check(halved(net)), {})
    return stage


def finish(args, name: str, net, pool: Pool, metrics: dict, gates: dict) -> None:
    print(name, metrics, flush=True)
    if args.publish:
        card = {"recipe": f"recipes/train_gense.py --stage {name}", "seed": 0, "steps": args.steps, "data_hash": pool.digest(), "shape": net.shape,
                "metrics": {key: round(float(value), 4) for key, value in metrics.items()}}
        publish(f"gense_{name}", net, card, gates, args.force)


STAGES = {"semantic": semantic, "acoustic": acoustic, "judge": judge, "regression": regression, "tokens": tokens,
          **{variant: decoder(variant) for variant in PARTS}}


def main() -> None:
    parser = options(__doc__, 0)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = args.steps
    for stage in STAGES if args.stage == "all" else [args.stage]:
        args.steps = asked or STEPS.get(stage, 0)
        torch.manual_seed(0)
        STAGES[stage](args)


if __name__ == "__main__":
    main()
