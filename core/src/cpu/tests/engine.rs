//! What the engine promises, on tiny models of all families.

use crate::{
    cpu::{CpuEngine, CpuOptions, EngineError, Feed, Isa, KvDType, Session},
    gguf::Gguf,
    quant::{DType, Importance},
    spec::{Family, Role, TensorEntry, tensor_table},
    testing::{random_model, tiny_model, tiny_spec, wide_spec},
};

const FAMILIES: [Family; 4] = Family::ALL;

fn engine_with(file: Vec<u8>, options: &CpuOptions) -> CpuEngine {
    CpuEngine::new(&Gguf::parse(file.into()).unwrap(), options).unwrap()
}

fn engine(family: Family, dtype: DType) -> CpuEngine {
    engine_with(tiny_model(family, dtype, 1), &CpuOptions::default())
}

fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + i * i * 11) as u32 % 290).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Logits of every position by `forward_all`. [T, V]
fn all_logits(engine: &CpuEngine, session: &mut Session, tokens: &[u32]) -> Vec<Vec<u32>> {
    let mut out = Vec::new();
    let mut each = |t: usize, logits: &[f32]| {
        assert_eq!(t, out.len(), "positions come in order");
        out.push(bits(logits));
    };
    engine.forward_all(session, tokens, &mut each).unwrap();
    out
}

/// Token by token, as decoding does. [T, V]
fn stepwise_logits(engine: &CpuEngine, tokens: &[u32]) -> Vec<Vec<u32>> {
    let mut session = engine.session(tokens.len()).unwrap();
    let step = |id: &u32| bits(&engine.forward(&mut session, &[*id]).unwrap());
    tokens.iter().map(step).collect()
}

#[test]
fn instruction_sets_threads_and_caches_give_the_same_bits() {
    let tokens = ids(21);
    for family in FAMILIES {
        for dtype in DType::ALL {
            for kv in [KvDType::F16, KvDType::F32] {
                let run = |isa, n_threads| {
                    let options = CpuOptions {
                        n_threads,
                        isa: Some(isa),
                        kv,
                    };
                    let engine = engine_with(tiny_model(family, dtype, 7), &options);
                    all_logits(&engine, &mut engine.session(32).unwrap(), &tokens)
                };
                let want = run(Isa::Scalar, 1);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    for n_threads in 1..=4 {
                        assert_eq!(
                            run(isa, n_threads),
                            want,
                            "{family:?} {dtype} {kv:?} {isa:?} {n_threads} threads"
                        );
                    }
                }
            }
        }
    }
}

/// Super-blocks, and rows that mix types as llama.cpp's recipes do.
#[test]
fn models_of_k_types_give_the_same_bits_everywhere() {
    let tokens = ids(37);
    for family in FAMILIES {
        for dtype in [DType::Q4K, DType::Q5K, DType::Q6K] {
            let file = random_model(&wide_spec(family), dtype, 7);
            let run = |isa| {
                let options = CpuOptions {
                    isa: Some(isa),
                    n_threads: 2,
                    ..CpuOptions::default()
                };
                let engine = engine_with(file.clone(), &options);
                let want = stepwise_logits(&engine, &tokens);
                let mut session = engine.session(64).unwrap();
                assert_eq!(all_logits(&engine, &mut session, &tokens), want);
                want
            };
            let want = run(Isa::Scalar);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(run(isa), want, "{family:?} {dtype} {isa:?}");
            }
        }
    }
}

#[test]
fn any_chunking_gives_the_same_bits() {
    let tokens = ids(128);
    for family in FAMILIES {
        for dtype in [
            DType::F32,
            DType::F16,
            DType::Q8_0,
            DType::Q4_0,
            DType::Q4_1,
        ] {
            let engine = engine(family, dtype);
            let want = stepwise_logits(&engine, &tokens);
            assert_eq!(
                all_logits(&engine, &mut engine.session(128).unwrap(), &tokens),
                want
            );
            for split in [1, 2, 31, 64, 127] {
                let mut session = engine.session(128).unwrap();
                let first = engine.forward(&mut session, &tokens[..split]).unwrap();
                assert_eq!(bits(&first), want[split - 1], "{family:?} {dtype} {split}");
                let last = engine.forward(&mut session, &tokens[split..]).unwrap();
                assert_eq!(bits(&last), want[127], "{family:?} {dtype} after {split}");
            }
            let mut session = engine.session(128).unwrap();
            assert_eq!(
                bits(&engine.forward(&mut session, &tokens).unwrap()),
                want[127]
            );
        }
    }
}

#[test]
fn importance_is_of_what_matrices_read() {
    let tokens = ids(40);
    for family in FAMILIES {
        let engine = engine(family, DType::F32);
        let want = all_logits(&engine, &mut engine.session(64).unwrap(), &tokens);
        let gather = |pieces: &[&[u32]]| {
            let mut importance = Importance::default();
            let mut session = engine.session(64).unwrap();
            for piece in pieces {
                let mut add = |names: &[&str], rows: &[f32], n| importance.add(names, rows, n);
                engine.watch_inputs(&mut session, piece, &mut add).unwrap();
            }
            importance
        };
        let importance = gather(&[&tokens]);
        assert_eq!(importance, gather(&[&tokens[..7], &tokens[7..]]));
        assert_eq!(importance.n_rows(), 40);
        let table = tensor_table(engine.spec());
        let reads = |e: &&TensorEntry| {
            let is_table = e.role == Role::TokenEmbd && !engine.spec().tied_embedding;
            e.quantizable && !is_table
        };
        let mut names: Vec<_> = table
            .iter()
            .filter(reads)
            .map(|e| e.gguf.as_str())
            .collect();
        names.sort_unstable();
        assert_eq!(importance.names().collect::<Vec<_>>(), names);
        for entry in table.iter().filter(reads) {
            let means = importance.means(&entry.gguf).unwrap();
            assert_eq!(means.len(), entry.shape[1], "{}", entry.gguf);
            assert!(means.iter().all(|mean| *mean > 0.0), "{}", entry.gguf);
        }
        let after = all_logits(&engine, &mut engine.session(64).unwrap(), &tokens);
        assert_eq!(after, want, "gathering leaves nothing behind");
    }
}

/// RMSNorm with a weight makes inputs of known size: the mean of x² over columns is that of the weight's squares.
#[test]
fn importance_has_the_size_of_the_norm() {
    let engine = engine(Family::Llama, DType::F32);
    let mut importance = Importance::default();
    let mut session = engine.session(64).unwrap();
    let mut add = |names: &[&str], rows: &[f32], n| importance.add(names, rows, n);
    engine
        .watch_inputs(&mut session, &ids(32), &mut add)
        .unwrap();
    let gguf = Gguf::parse(tiny_model(Family::Llama, DType::F32, 1).into()).unwrap();
    let weight = gguf.tensor_f32("blk.0.attn_norm.weight").unwrap();
    let means = importance.means("blk.0.attn_q.weight").unwrap();
    let ratio: f32 = means.iter().zip(&weight).map(|(m, w)| m / (w * w)).sum();
    assert!((ratio / 64.0 - 1.0).abs() < 1e-3, "{ratio}");
}

#[test]
fn a_matrix_can_be_exchanged() {
    let tokens = ids(20);
    for family in FAMILIES {
        let logits = |engine: &CpuEngine| {
            let logits = engine.forward(&mut engine.session(32).unwrap(), &tokens);
            bits(&logits.unwrap())
        };
        let file = |dtype| Gguf::parse(tiny_model(family, dtype, 1).into()).unwrap();
        let (exact, rounded) = (file(DType::F32), file(DType::Q8_0));
        let mut engine = engine(family, DType::F32);
        let before = logits(&engine);
        let matrices = exact.header().tensors.iter().filter(|info| {
            let in_rounded = rounded.tensor(&info.name).unwrap().0;
            in_rounded.dtype == DType::Q8_0
        });
        let mut former = Vec::new();
        for info in matrices {
            let bytes = rounded.tensor(&info.name).unwrap().1;
            former.push((
                &info.name,
                engine.replace_matrix(&info.name, DType::Q8_0, &bytes),
            ));
        }
        let all_rounded = CpuEngine::new(&rounded, &CpuOptions::default()).unwrap();
        assert_eq!(logits(&engine), logits(&all_rounded), "{family:?}");
        for (name, former) in former {
            let (dtype, bytes) = former.unwrap();
            engine.replace_matrix(name, dtype, &bytes).unwrap();
        }
        assert_eq!(logits(&engine), before, "{family:?}");
        let bytes = bytes::Bytes::from_static(&[0; 4]);
        for name in ["blk.0.attn_output.weight", "no.such"] {
            let error = engine.replace_matrix(name, DType::F32, &bytes);
            assert!(error.unwrap_err().to_string().contains(name));
        }
        assert_eq!(logits(&engine), before, "{family:?}");
    }
}

#[test]
fn a_rewound_session_is_as_new() {
    for family in FAMILIES {
        let engine = engine(family, DType::Q8_0);
        let tokens = ids(40);
        let want = stepwise_logits(&engine, &tokens);
        let mut session = engine.session(64).unwrap();
        engine.forward(&mut session, &tokens[..30]).unwrap();
        engine.forward(&mut session, &[5, 6, 7]).unwrap();
        assert_eq!(session.common_prefix_len(&tokens), 30);
        session.rewind(12);
        assert_eq!(session.tokens(), &tokens[..12]);
        session.rewind(20);
        assert_eq!(session.tokens().len(), 12, "rewinding never adds");
        assert_eq!(
            bits(&engine.forward(&mut session, &tokens[12..]).unwrap()),
            want[39]
        );
        session.rewind(0);
        assert_eq!(
            bits(&engine.forward(&mut session, &tokens).unwrap()),
            want[39]
        );
    }
}

#[test]
fn a_fork_goes_its_own_way() {
    let engine = engine(Family::Llama, DType::Q4_1);
    let mut one = engine.session(16).unwrap();
    engine.forward(&mut one, &[1, 2, 3]).unwrap();
    let mut two = one.clone();
    let a = engine.forward(&mut one, &[4]).unwrap();
    engine.forward(&mut two, &[9, 9]).unwrap();
    two.rewind(3);
    assert_eq!(bits(&engine.forward(&mut two, &[4]).unwrap()), bits(&a));
    assert_eq!(one.tokens(), two.tokens());
}

#[test]
fn a_batch_gives_what_each_conversation_gives_by_itself() {
    for family in FAMILIES {
        let options = CpuOptions {
            n_threads: 2,
            ..CpuOptions::default()
        };
        let engine = engine_with(tiny_model(family, DType::Q8_0, 1), &options);
        let tokens = ids(128);
        // A context, then texts that go on from it or from nothing, longer than a chunk together.
        let mut shared = engine.session(128).unwrap();
        engine.forward(&mut shared, &tokens[..20]).unwrap();
        let parts = [
            (20, 20..21),
            (0, 5..120),
            (20, 70..110),
            (0, 3..4),
            (20, 9..25),
        ];
        let wanted_from = [0, 60, 39, 0, 16];
        let start = |past| match past {
            0 => engine.session(128).unwrap(),
            _ => shared.clone(),
        };
        let mut want = Vec::new();
        for (feed, ((past, range), from)) in parts.iter().zip(wanted_from).enumerate() {
            let alone = all_logits(&engine, &mut start(*past), &tokens[range.clone()]);
            want.extend((from..alone.len()).map(|t| (feed, t, alone[t].clone())));
        }
        let mut sessions: Vec<Session> = parts.iter().map(|(past, _)| start(*past)).collect();
        let zipped = sessions.iter_mut().zip(&parts).zip(wanted_from);
        let mut feeds: Vec<Feed<'_>> = zipped
            .map(|((session, (_, range)), wanted_from)| Feed {
                session,
                tokens: &tokens[range.clone()],
                wanted_from,
            })
            .collect();
        let got = engine
            .forward_batch(&mut feeds, &|feed, t, logits| (feed, t, bits(logits)))
            .unwrap();
        assert!(got == want, "{family:?}");
        assert_eq!(sessions[1].tokens(), &tokens[5..120]);
    }
}

#[test]
fn a_batch_with_a_wrong_part_changes_nothing() {
    let engine = engine(Family::Llama, DType::F32);
    let (mut one, mut two) = (engine.session(8).unwrap(), engine.session(2).unwrap());
    let mut feeds =
        [(&mut one, &[1, 2][..]), (&mut two, &[1, 2, 3][..])].map(|(session, tokens)| Feed {
            session,
            tokens,
            wanted_from: 0,
        });
    let result = engine.forward_batch(&mut feeds, &|_, _, _| ());
    assert!(matches!(result, Err(EngineError::ContextFull { .. })));
    assert!(one.tokens().is_empty() && two.tokens().is_empty());
}

#[test]
fn sessions_of_one_engine_run_from_several_threads() {
    let engine = engine_with(
        tiny_model(Family::Llama, DType::Q8_0, 1),
        &CpuOptions {
            n_threads: 2,
            ..CpuOptions::default()
        },
    );
    let tokens = ids(24);
    let want = stepwise_logits(&engine, &tokens);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(stepwise_logits(&engine, &tokens), want));
        }
    });
}

#[test]
fn wrong_input_is_refused_and_leaves_the_session_as_it_was() {
    let engine = engine(Family::Llama, DType::F32);
    let vocab_size = engine.spec().vocab_size;
    let mut session = engine.session(4).unwrap();
    engine.forward(&mut session, &[1, 2]).unwrap();
    let bad = vocab_size as u32;
    assert_eq!(
        engine.forward(&mut session, &[3, bad]),
        Err(EngineError::TokenId {
            id: bad,
            vocab_size
        })
    );
    assert_eq!(
        engine.forward(&mut session, &[]),
        Err(EngineError::NoTokens)
    );
    let full = EngineError::ContextFull {
        used: 2,
        fed: 3,
        n_ctx: 4,
    };
    assert_eq!(engine.forward(&mut session, &[3, 4, 5]), Err(full.clone()));
    assert_eq!(
        engine.forward_all(&mut session, &[3, 4, 5], &mut |_, _| ()),
        Err(full)
    );
    assert_eq!(session.tokens(), [1, 2]);
    engine.forward(&mut session, &[3, 4]).unwrap();

    for asked in [0, 129] {
        let got = engine.session(asked).err();
        assert_eq!(got, Some(EngineError::ContextSize { asked, limit: 128 }));
    }
    let f32_cache = CpuOptions {
        kv: KvDType::F32,
        ..CpuOptions::default()
    };
    let other = engine_with(tiny_model(Family::Llama, DType::F32, 1), &f32_cache);
    assert_eq!(
        other.forward(&mut session, &[1]),
        Err(EngineError::ForeignSession)
    );
    let gguf = Gguf::parse(tiny_model(Family::Gpt2, DType::F32, 1).into()).unwrap();
    let no_threads = CpuOptions {
        n_threads: 0,
        ..CpuOptions::default()
    };
    assert_eq!(
        CpuEngine::new(&gguf, &no_threads).err(),
        Some(EngineError::NoThreads)
    );
}

#[test]
fn a_cache_beyond_memory_is_an_error_with_its_size() {
    let mut spec = tiny_spec(Family::Llama);
    spec.head_dim = usize::MAX >> 22;
    let error = Session::new(&spec, 1 << 20, 1 << 20, KvDType::F16).err();
    let bytes = usize::MAX; // or more: 8 caches, 2^20 positions, 2 bytes
    assert_eq!(
        error,
        Some(EngineError::OutOfMemory {
            bytes,
            n_positions: 1 << 20
        })
    );
}

/// The file with the first bytes of `tensor` replaced.
fn damaged(family: Family, dtype: DType, tensor: &str, bytes: &[u8]) -> Vec<u8> {
    let mut file = tiny_model(family, dtype, 1);
    let gguf = Gguf::parse(file.clone().into()).unwrap();
    let info = gguf.header().tensor(tensor).unwrap();
    let start = gguf.header().file_range(info).start as usize;
    file[start..start + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let nan = f32::NAN.to_le_bytes();
    let inf = f32::INFINITY.to_le_bytes();
    let half_inf = half::f16::INFINITY.to_le_bytes();
    for (family, dtype, tensor, bytes) in [
        (
            Family::Llama,
            DType::Q8_0,
            "blk.1.ffn_norm.weight",
            &nan[..],
        ),
        (Family::Llama, DType::F32, "blk.0.ffn_down.weight", &inf[..]),
        (
            Family::Gpt2,
            DType::Q4_0,
            "blk.1.attn_output.weight",
            &half_inf[..],
        ),
        (Family::Gpt2, DType::F32, "output_norm.weight", &nan[..]),
    ] {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let options = CpuOptions {
                isa: Some(isa),
                ..CpuOptions::default()
            };
            let engine = engine_with(damaged(family, dtype, tensor, bytes), &options);
            let mut session = engine.session(64).unwrap();
            let error = engine.forward(&mut session, &ids(40));
            let place = tensor.to_owned();
            assert_eq!(error, Err(EngineError::NotFinite { place }), "{isa:?}");
            assert!(session.tokens().is_empty());
        }
    }
}

#[test]
fn a_file_that_does_not_fit_its_spec_is_refused() {
    let file = tiny_model(Family::Llama, DType::F32, 1);
    let short = Gguf::parse(file[..file.len() - 4].to_vec().into());
    assert!(short.is_err());
    // The layer count is in the metadata as a u32 after its key and type.
    let key = b"llama.block_count";
    let at = file.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    let mut more_layers = file.clone();
    more_layers[at] += 1;
    let gguf = Gguf::parse(more_layers.into()).unwrap();
    let error = CpuEngine::new(&gguf, &CpuOptions::default()).err();
    assert!(matches!(error, Some(EngineError::Spec(_))), "{error:?}");
}

#[test]
fn instruction_sets_have_names() {
    for isa in Isa::ALL {
        assert_eq!(isa.to_string().parse(), Ok(isa));
    }
    let error = "sse9".parse::<Isa>().unwrap_err().to_string();
    assert_eq!(
        error,
        "there are no kernels called `sse9`: give avx512, avx2, neon, simd128 or scalar"
    );
}
