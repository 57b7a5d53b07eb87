use super::*;
use crate::{
    gguf::{Gguf, Header, Value},
    quant::DType,
    testing::{tiny_model, tiny_spec},
};
use proptest::prelude::*;
use serde_json::json;

fn tiny_header(family: Family, dtype: DType) -> Header {
    Header::parse(&tiny_model(family, dtype, 1)).expect("a valid header")
}

/// The published config of SmolLM2-135M-Instruct.
fn smollm2() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041_666_666,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100_000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "vocab_size": 49152
    })
}

/// The published config of Llama 3.2 1B, what matters of it.
fn llama32() -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131_072, "num_attention_heads": 32, "num_hidden_layers": 16, "head_dim": 64,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500_000.0, "tie_word_embeddings": true,
        "vocab_size": 128_256, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        }
    })
}

/// The published config of Qwen2.5-0.5B-Instruct.
fn qwen2() -> serde_json::Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643, "eos_token_id": 151_645,
        "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1_000_000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151_936
    })
}

/// The published config of Qwen3-0.6B.
fn qwen3() -> serde_json::Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151_643, "eos_token_id": 151_645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1_000_000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151_936
    })
}

/// The published config of GPT-2, what matters of it.
fn gpt2() -> serde_json::Value {
    json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "vocab_size": 50257
    })
}

fn freq_factors(spec: &ModelSpec) -> &[f32] {
    match &spec.position {
        Position::Rope { freq_factors, .. } => freq_factors,
        Position::Learned => panic!("no rotary positions"),
    }
}

#[test]
fn hf_configs_are_read() {
    let spec = ModelSpec::from_hf_config(&smollm2()).expect("SmolLM2");
    let rope = Position::Rope {
        base: 100_000.0,
        dim: 64,
        pairing: Pairing::Neighbours,
        freq_factors: Vec::new(),
    };
    assert_eq!(
        (spec.head_dim, spec.n_kv_head, spec.tied_embedding),
        (64, 3, true)
    );
    assert_eq!((spec.position, spec.norm_eps), (rope, 1e-5));

    let spec = ModelSpec::from_hf_config(&gpt2()).expect("GPT-2");
    assert_eq!((spec.n_ff, spec.head_dim, spec.n_kv_head), (3072, 64, 12));
    assert_eq!(
        (spec.position, spec.bias, spec.tied_embedding),
        (Position::Learned, Bias::All, true)
    );
}

#[test]
fn qwen_turns_halves_and_has_biases_or_norms_of_heads() {
    let pairing = |spec: &ModelSpec| match &spec.position {
        Position::Rope { pairing, base, .. } => (*pairing, *base),
        Position::Learned => panic!("no rotary positions"),
    };
    let spec = ModelSpec::from_hf_config(&qwen2()).expect("Qwen2.5");
    assert_eq!(pairing(&spec), (Pairing::Halves, 1e6));
    assert_eq!(
        (spec.head_dim, spec.bias, spec.qk_norm),
        (64, Bias::Qkv, false)
    );
    assert_eq!(
        spec.n_parameters(),
        494_032_768,
        "as the model card says: 0.49B"
    );
    let q_bias = tensor_table(&spec)
        .into_iter()
        .find(|entry| entry.role == Role::AttnQBias)
        .expect("a bias of q");
    assert_eq!(
        (
            q_bias.gguf.as_str(),
            q_bias.hf.as_str(),
            q_bias.burn.as_str()
        ),
        (
            "blk.0.attn_q.bias",
            "model.layers.0.self_attn.q_proj.bias",
            "blocks.0.attn_q.bias"
        )
    );

    let spec = ModelSpec::from_hf_config(&qwen3()).expect("Qwen3");
    assert_eq!(pairing(&spec), (Pairing::Halves, 1e6));
    assert_eq!(
        (spec.head_dim, spec.bias, spec.qk_norm),
        (128, Bias::None, true)
    );
    assert_eq!(
        spec.n_parameters(),
        596_049_920,
        "as the model card says: 0.6B"
    );
    let table = tensor_table(&spec);
    let of_role = |role| {
        table
            .iter()
            .find(|entry| entry.role == role)
            .expect("the role is there")
    };
    assert_eq!(of_role(Role::AttnQ).shape, [2048, 1024]);
    let k_norm = of_role(Role::AttnKNorm);
    assert_eq!(
        (
            k_norm.gguf.as_str(),
            k_norm.hf.as_str(),
            k_norm.burn.as_str(),
            k_norm.shape.as_slice()
        ),
        (
            "blk.0.attn_k_norm.weight",
            "model.layers.0.self_attn.k_norm.weight",
            "blocks.0.attn_k_norm.gamma",
            &[128][..]
        )
    );

    for (key, value) in [
        ("use_sliding_window", json!(true)),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
        ),
        ("attention_bias", json!(true)),
        (
            "rope_scaling",
            json!({ "rope_type": "yarn", "factor": 4.0 }),
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "dynamic", "factor": 4.0 }),
        ),
    ] {
        let mut config = qwen3();
        config[key] = value.clone();
        let refused = ModelSpec::from_hf_config(&config).expect_err("another computation");
        assert!(refused.to_string().contains(key), "{key}: {refused}");
    }
    let mut config = qwen3();
    config["layer_types"] = json!(["full_attention", "full_attention"]);
    config["head_dim"] = json!(null);
    assert_eq!(
        ModelSpec::from_hf_config(&config),
        Ok(spec),
        "transformers' defaults"
    );
}

#[test]
fn llama3_scaling_gives_the_published_divisors() {
    let spec = ModelSpec::from_hf_config(&llama32()).expect("Llama 3.2");
    // rope_freqs.weight as llama.cpp's converter writes it for Llama 3.2: 1 up to index 14, 32 from 18 on.
    let factors = freq_factors(&spec);
    assert_eq!(factors.len(), 32);
    assert!(factors[..15].iter().all(|x| *x == 1.0), "{factors:?}");
    assert!(
        factors[15..18].is_sorted() && factors[15] > 1.0 && factors[17] < 32.0,
        "{factors:?}"
    );
    assert!(factors[18..].iter().all(|x| *x == 32.0), "{factors:?}");

    let mut config = llama32();
    let mut parameters = config["rope_scaling"].take();
    parameters["rope_theta"] = config["rope_theta"].take();
    config["rope_parameters"] = parameters;
    assert_eq!(
        ModelSpec::from_hf_config(&config),
        Ok(spec.clone()),
        "the form of transformers 5"
    );
    assert_eq!(
        spec.to_hf_config()["rope_scaling"],
        llama32()["rope_scaling"]
    );
}

#[test]
fn specs_survive_both_formats() {
    let linear = json!({ "type": "linear", "factor": 2.5 });
    let mut scaled = smollm2();
    scaled["rope_scaling"] = linear;
    for config in [smollm2(), scaled, llama32(), gpt2(), qwen2(), qwen3()] {
        let spec = ModelSpec::from_hf_config(&config).expect("a valid config");
        assert_eq!(
            ModelSpec::from_hf_config(&spec.to_hf_config()),
            Ok(spec.clone())
        );
        let tensors = tensor_table(&spec)
            .into_iter()
            .map(|entry| crate::gguf::TensorInfo {
                name: entry.gguf,
                dtype: DType::F32,
                shape: entry.shape.iter().rev().map(|n| *n as u64).collect(),
                offset_bytes: 0,
                len_bytes: 0,
            });
        let mut header = Header {
            metadata: spec.to_metadata(),
            tensors: tensors.collect(),
            data_offset_bytes: 0,
            alignment: 32,
        };
        if let Some(factors) = spec.rope_freqs_tensor() {
            header.tensors.push(crate::gguf::TensorInfo {
                name: ROPE_FREQS.to_owned(),
                dtype: DType::F32,
                shape: vec![factors.len() as u64],
                offset_bytes: 0,
                len_bytes: 0,
            });
        }
        let mut read = ModelSpec::from_header(&header).expect("a valid header");
        if let Some(factors) = spec.rope_freqs_tensor() {
            assert!(
                freq_factors(&read).iter().all(|x| *x == 0.0),
                "a placeholder until the tensor is read"
            );
            read.set_rope_freqs(factors).expect("valid factors");
        }
        assert_eq!(read, spec);
        assert_eq!(check_tensors(&header, &spec), Ok(()));
    }
}

#[test]
fn configs_that_would_compute_something_else_are_refused() {
    for (key, value) in [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        (
            "rope_scaling",
            json!({ "rope_type": "yarn", "factor": 4.0 }),
        ),
        (
            "rope_scaling",
            json!({ "rope_type": "longrope", "short_factor": [1], "long_factor": [2] }),
        ),
        ("hidden_size", json!("wide")),
        ("hidden_size", json!(1_u64 << 60)),
        ("num_hidden_layers", json!(-1)),
        ("num_hidden_layers", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(2)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(63)),
        ("rms_norm_eps", json!(-1.0)),
        ("vocab_size", json!(null)),
        ("model_type", json!("mamba")),
        ("model_type", json!(7)),
    ] {
        let mut config = smollm2();
        config[key] = value.clone();
        assert!(
            ModelSpec::from_hf_config(&config).is_err(),
            "{key}: {value}"
        );
    }
    for bad in [json!(null), json!([]), json!("gpt2"), json!({})] {
        assert!(ModelSpec::from_hf_config(&bad).is_err(), "{bad}");
    }
    let mut config = gpt2();
    config["activation_function"] = json!("relu");
    assert!(ModelSpec::from_hf_config(&config).is_err());
}

#[test]
fn the_table_names_what_llama_cpp_and_transformers_name() {
    let table = tensor_table(&tiny_spec(Family::Gpt2));
    assert_eq!(table.len(), 2 + 2 * 12 + 2);
    let by_role = |role| {
        table
            .iter()
            .find(|entry| entry.role == role)
            .expect("the role is there")
    };
    let qkv = by_role(Role::AttnQkv);
    assert_eq!(
        (qkv.gguf.as_str(), qkv.hf.as_str()),
        (
            "blk.0.attn_qkv.weight",
            "transformer.h.0.attn.c_attn.weight"
        )
    );
    assert_eq!(
        (qkv.shape.as_slice(), qkv.hf_shape().as_slice()),
        (&[192, 64][..], &[64, 192][..])
    );
    assert_eq!(by_role(Role::PositionEmbd).gguf, "position_embd.weight");
    assert!(!by_role(Role::PositionEmbd).quantizable && qkv.quantizable);
    assert_eq!(by_role(Role::FfnNormBias).burn, "blocks.0.ffn_norm.beta");

    let table = tensor_table(&tiny_spec(Family::Llama));
    assert_eq!(table.len(), 1 + 2 * 9 + 2);
    let mut names: Vec<_> = table
        .iter()
        .flat_map(|entry| [&entry.gguf, &entry.hf])
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 2 * table.len());
    let k = table
        .iter()
        .find(|entry| entry.gguf == "blk.1.attn_k.weight")
        .expect("k");
    assert_eq!(k.hf_layout, HfLayout::RopePermuted { n_head: 2 });
}

#[test]
fn rope_rows_of_a_head_become_neighbours() {
    // One head of four rows of one column: first halves 0 1, second halves 2 3.
    let entry = TensorEntry {
        role: Role::AttnQ,
        layer: None,
        gguf: String::new(),
        hf: String::new(),
        burn: String::new(),
        shape: vec![4, 1],
        hf_layout: HfLayout::RopePermuted { n_head: 1 },
        quantizable: true,
    };
    assert_eq!(entry.to_gguf_layout(vec![0, 1, 2, 3]), [0, 2, 1, 3]);
    assert_eq!(entry.to_hf_layout(vec![0, 2, 1, 3]), [0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn layouts_go_there_and_back(n_head in 1_usize..4, half in 1_usize..5, n_cols in 1_usize..6, kind in 0_usize..3) {
        let shape = vec![n_head * half * 2, n_cols];
        let entry = TensorEntry {
            role: Role::AttnQ,
            layer: None,
            gguf: String::new(),
            hf: String::new(),
            burn: String::new(),
            shape: shape.clone(),
            hf_layout: [HfLayout::Same, HfLayout::Transposed, HfLayout::RopePermuted { n_head }][kind],
            quantizable: true,
        };
        let values: Vec<usize> = (0..shape.iter().product()).collect();
        let gguf = entry.to_gguf_layout(values.clone());
        prop_assert_eq!(entry.to_hf_layout(gguf.clone()), values.clone());
        prop_assert_eq!(entry.to_gguf_layout(entry.to_hf_layout(values.clone())), values);
        prop_assert!(kind == 0 || gguf.len() < 4 || half == 1 || n_cols == 1 || gguf != (0..gguf.len()).collect::<Vec<_>>());
    }
}

#[test]
fn tiny_models_pass_the_check() {
    for family in Family::ALL {
        for dtype in DType::ALL {
            let header = tiny_header(family, dtype);
            let spec = ModelSpec::from_header(&header).expect("a valid spec");
            assert_eq!(check_tensors(&header, &spec), Ok(()));
        }
    }
}

/// What the user reads after `change`.
fn refusal(family: Family, change: impl Fn(&mut Header)) -> String {
    let mut header = tiny_header(family, DType::Q8_0);
    change(&mut header);
    let checked = ModelSpec::from_header(&header).and_then(|spec| check_tensors(&header, &spec));
    checked.expect_err("the change must be refused").to_string()
}

fn index(header: &Header, name: &str) -> usize {
    header
        .tensors
        .iter()
        .position(|info| info.name == name)
        .expect("the tensor is there")
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let dropped = refusal(Family::Gpt2, |header| {
        let idx = index(header, "blk.1.ffn_up.bias");
        header.tensors.remove(idx);
    });
    assert_eq!(
        dropped,
        "tensor `blk.1.ffn_up.bias` is missing from the file"
    );
    let reshaped = refusal(Family::Llama, |header| {
        let idx = index(header, "blk.0.attn_k.weight");
        header.tensors[idx].shape = vec![64, 64];
    });
    assert_eq!(
        reshaped,
        "tensor `blk.0.attn_k.weight` has the shape [64, 64], it must be [32, 64] (row-major)"
    );
    let retyped = refusal(Family::Llama, |header| {
        let idx = index(header, "output_norm.weight");
        header.tensors[idx].dtype = DType::Q4_0;
    });
    assert_eq!(
        retyped,
        "tensor `output_norm.weight` has the type Q4_0, it must be F32, F16 or BF16"
    );
    let biased = refusal(Family::Llama, |header| {
        let mut info = header.tensors[0].clone();
        info.name = "blk.0.attn_q.bias".to_owned();
        header.tensors.push(info);
    });
    assert!(
        biased.contains("`blk.0.attn_q.bias` is not part of this architecture"),
        "{biased}"
    );
    let no_embedding = refusal(Family::Llama, |header| {
        header.tensors.remove(0);
    });
    assert_eq!(
        no_embedding,
        "tensor `token_embd.weight` is missing from the file"
    );
}

#[test]
fn numbers_of_a_hostile_file_are_bounded() {
    for (key, value) in [
        ("llama.block_count", Value::U64(u64::MAX)),
        ("llama.block_count", Value::U32(0)),
        ("llama.block_count", Value::U32(3)),
        ("llama.block_count", Value::U32(4000)),
        ("llama.embedding_length", Value::U64(1 << 62)),
        ("llama.embedding_length", Value::I32(-64)),
        ("llama.embedding_length", Value::U32(96)),
        ("llama.attention.head_count", Value::U32(0)),
        ("llama.attention.head_count", Value::F32(4.0)),
        ("llama.attention.head_count_kv", Value::U32(0)),
        ("llama.attention.head_count_kv", Value::U32(3)),
        ("llama.attention.key_length", Value::U32(u32::MAX)),
        ("llama.attention.key_length", Value::U32(0)),
        ("llama.attention.value_length", Value::U32(8)),
        ("llama.rope.dimension_count", Value::U32(8)),
        ("llama.rope.freq_base", Value::F32(f32::NAN)),
        ("llama.rope.freq_base", Value::F32(-1.0)),
        ("llama.rope.scaling.type", Value::String("yarn".into())),
        ("llama.rope.scaling.factor", Value::F32(-2.0)),
        ("llama.rope.scaling.factor", Value::F32(f32::INFINITY)),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::F32(f32::NAN),
        ),
        ("llama.feed_forward_length", Value::U64(u64::MAX)),
        ("llama.context_length", Value::U32(0)),
        ("llama.context_length", Value::U64(1 << 40)),
        ("llama.expert_count", Value::U32(8)),
        ("general.architecture", Value::String("mamba".into())),
        ("general.architecture", Value::U32(1)),
    ] {
        let message = refusal(Family::Llama, |header| {
            header.metadata.set(key, value.clone());
        });
        assert!(!message.is_empty(), "{key}");
    }
    for (key, value) in [
        ("qwen3.attention.key_length", Value::U32(31)),
        ("qwen3.attention.key_length", Value::U32(0)),
        ("qwen3.attention.key_length", Value::U32(u32::MAX)),
        ("qwen3.attention.key_length", Value::F32(32.0)),
        ("qwen3.attention.value_length", Value::U32(16)),
        ("qwen3.rope.dimension_count", Value::U32(16)),
        ("qwen3.rope.scaling.type", Value::String("yarn".into())),
        ("qwen3.rope.scaling.attn_factor", Value::F32(1.2)),
        ("qwen3.attention.causal", Value::Bool(false)),
        ("qwen3.attention.head_count_kv", Value::U32(3)),
        ("qwen3.block_count", Value::U32(u32::MAX)),
        ("general.architecture", Value::String("qwen2".into())),
        ("general.architecture", Value::String("qwen3moe".into())),
    ] {
        let message = refusal(Family::Qwen3, |header| {
            header.metadata.set(key, value.clone());
        });
        assert!(!message.is_empty(), "{key}");
    }
    let norm = refusal(Family::Qwen3, |header| {
        let idx = index(header, "blk.1.attn_k_norm.weight");
        header.tensors[idx].shape = vec![64];
    });
    assert!(
        norm.contains("`blk.1.attn_k_norm.weight` has the shape [64]"),
        "{norm}"
    );
    let bias = refusal(Family::Qwen2, |header| {
        let idx = index(header, "blk.0.attn_v.bias");
        header.tensors.remove(idx);
    });
    assert!(bias.contains("`blk.0.attn_v.bias` is missing"), "{bias}");
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        let message = refusal(Family::Llama, |header| {
            header.metadata.remove(key);
        });
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn linear_scaling_is_a_constant_divisor() {
    let mut header = tiny_header(Family::Llama, DType::F32);
    header.metadata.set("llama.rope.scaling.factor", 4.0_f32);
    let spec = ModelSpec::from_header(&header).expect("linear is the default type");
    assert_eq!(freq_factors(&spec), [4.0; 8]);
    assert_eq!(spec.rope_freqs_tensor(), None);
    header.metadata.set("llama.rope.scaling.type", "none");
    let spec = ModelSpec::from_header(&header).expect("a valid spec");
    assert!(freq_factors(&spec).is_empty());
}

#[test]
fn frequency_divisors_are_checked() {
    let mut spec = tiny_spec(Family::Llama);
    assert!(spec.set_rope_freqs(&[1.0; 7]).is_err());
    assert!(spec.set_rope_freqs(&[0.0; 8]).is_err());
    assert!(spec.set_rope_freqs(&[f32::NAN; 8]).is_err());
    assert!(spec.set_rope_freqs(&[2.0; 8]).is_ok());
    assert!(tiny_spec(Family::Gpt2).set_rope_freqs(&[1.0; 8]).is_err());
}

#[test]
fn a_whole_file_brings_its_frequency_divisors() {
    use crate::gguf::{Layout, TensorDecl};
    let source =
        Gguf::parse(tiny_model(Family::Llama, DType::F32, 1).into()).expect("a valid file");
    let divisors = [1.0_f32, 1.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0];
    let mut tensors: Vec<(TensorDecl, Vec<u8>)> = Vec::new();
    for info in &source.header().tensors {
        let shape = info.shape.iter().rev().map(|n| *n as usize).collect();
        let bytes = source
            .tensor(&info.name)
            .expect("the tensor is there")
            .1
            .to_vec();
        tensors.push((
            TensorDecl {
                name: info.name.clone(),
                dtype: info.dtype,
                shape,
            },
            bytes,
        ));
    }
    let bytes = divisors.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensors.push((
        TensorDecl {
            name: ROPE_FREQS.to_owned(),
            dtype: DType::F32,
            shape: vec![8],
        },
        bytes,
    ));
    let decls = tensors.iter().map(|(decl, _)| decl.clone());
    let layout = Layout::new(source.header().metadata.clone(), decls).expect("a valid layout");
    let mut writer = layout.write_to(Vec::new()).expect("a Vec takes all");
    for (decl, bytes) in &tensors {
        writer.write_tensor(&decl.name, bytes).expect("in order");
    }
    let gguf = Gguf::parse(writer.finish().expect("complete").into()).expect("a valid file");
    let spec = ModelSpec::from_gguf(&gguf).expect("a valid spec");
    assert_eq!(freq_factors(&spec), divisors);
    assert_eq!(spec.rope_freqs_tensor(), Some(&divisors[..]));
    assert_eq!(check_tensors(gguf.header(), &spec), Ok(()));
}
