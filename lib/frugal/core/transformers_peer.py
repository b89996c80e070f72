"""The same weights as a transformers model, to compare numbers and speed with (extra `peers`)."""
from frugal.core.layout import split_weights
from frugal.core.lm import LM
from frugal.core.safetensors_folder import name_in_folder


def to_transformers(lm: LM, attention: str = "sdpa"):
    """transformers' Llama with the weights of `lm`. attention: "sdpa" or "eager".

    Raises ImportError without transformers, ValueError for a weight that transformers does not know or misses.
    """
    import transformers
    c = lm.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_layers, head_dim=c.head_dim,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, intermediate_size=c.intermediate_size,
        rms_norm_eps=c.norm_eps, max_position_embeddings=c.max_positions, tie_word_embeddings=c.tie_embeddings,
        rope_parameters={"rope_theta": c.rope_theta, "rope_type": "default"}, attn_implementation=attention)
    model = transformers.LlamaForCausalLM(config).eval()
    weights = {name_in_folder(part): weight for part, weight in split_weights(c, lm.weights)}
    absent = model.load_state_dict(weights, strict=False)
    if absent.unexpected_keys or not set(absent.missing_keys) <= {"lm_head.weight"}:
        raise ValueError(f"weights do not fit: unknown {absent.unexpected_keys}, missing {absent.missing_keys}")
    model.tie_weights()
    return model
