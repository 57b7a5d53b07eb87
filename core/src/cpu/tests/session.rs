//! Sessions that are forked, rewound, saved and restored go on with the bits of one that was fed in one go.

use crate::{
    cpu::{CpuEngine, CpuOptions, EngineError, KvDType, SavedSessionError, Session},
    gguf::Gguf,
    quant::DType,
    spec::Family,
    testing::tiny_model,
};
use proptest::prelude::*;

fn engine(family: Family, seed: u64, kv: KvDType) -> CpuEngine {
    let gguf = Gguf::parse(tiny_model(family, DType::Q8_0, seed).into()).unwrap();
    let options = CpuOptions {
        kv,
        ..CpuOptions::default()
    };
    CpuEngine::new(&gguf, &options).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 31 + i * i * 7) as u32 % 290).collect()
}

fn bits(engine: &CpuEngine, session: &mut Session, tokens: &[u32]) -> Vec<u32> {
    let logits = engine.forward(session, tokens).unwrap();
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn forks_rewinds_and_copies_in_bytes_go_on_with_the_same_bits() {
    let tokens = ids(60);
    for family in Family::ALL {
        for kv in [KvDType::F16, KvDType::F32] {
            let engine = engine(family, 7, kv);
            let want = bits(&engine, &mut engine.session(64).unwrap(), &tokens);
            let mut trunk = engine.session(64).unwrap();
            bits(&engine, &mut trunk, &tokens[..50]);
            for len in [0, 1, 17, 49, 50] {
                let mut fork = trunk.fork(len).unwrap();
                assert_eq!(fork.tokens(), &tokens[..len]);
                let saved = engine.save_session(&fork).unwrap();
                assert_eq!(
                    bits(&engine, &mut fork, &tokens[len..]),
                    want,
                    "{family:?} {len}"
                );
                let mut restored = engine.restore_session(&saved, 64).unwrap();
                assert_eq!(restored.tokens(), &tokens[..len]);
                assert_eq!(engine.save_session(&restored).unwrap(), saved);
                assert_eq!(bits(&engine, &mut restored, &tokens[len..]), want);
            }
            assert_eq!(trunk.tokens(), &tokens[..50], "forks go their own way");
            trunk.rewind(20);
            assert_eq!(bits(&engine, &mut trunk, &tokens[20..]), want);
            let mut growing = engine.growing_session(64).unwrap();
            for id in &tokens[..59] {
                bits(&engine, &mut growing, &[*id]);
            }
            assert_eq!(bits(&engine, &mut growing, &tokens[59..]), want);
        }
    }
}

#[test]
fn memory_is_reserved_for_what_is_there() {
    let engine = engine(Family::Llama, 7, KvDType::F16);
    let whole = engine.session(128).unwrap();
    assert_eq!(whole.reserved_bytes(), 128 * engine.position_bytes());
    let mut session = engine.growing_session(128).unwrap();
    assert_eq!(session.reserved_bytes(), 0);
    bits(&engine, &mut session, &ids(9));
    assert_eq!(session.reserved_bytes(), 9 * engine.position_bytes());
    bits(&engine, &mut session, &[1]);
    let grown = session.reserved_bytes();
    assert!(grown > 10 * engine.position_bytes() && grown <= 80 * engine.position_bytes());
    assert_eq!(
        session.fork(4).unwrap().reserved_bytes(),
        4 * engine.position_bytes()
    );
    bits(&engine, &mut session, &ids(118));
    assert_eq!(session.reserved_bytes(), 128 * engine.position_bytes());
}

#[test]
fn what_is_not_this_models_session_is_refused() {
    let engine_a = engine(Family::Llama, 7, KvDType::F16);
    let mut session = engine_a.session(64).unwrap();
    bits(&engine_a, &mut session, &ids(10));
    let saved = engine_a.save_session(&session).unwrap();
    let refused = |engine: &CpuEngine, bytes: &[u8]| engine.restore_session(bytes, 64).unwrap_err();

    let other_weights = engine(Family::Llama, 8, KvDType::F16);
    assert_eq!(
        refused(&other_weights, &saved),
        SavedSessionError::OtherModel
    );
    let other_spec = engine(Family::Qwen3, 7, KvDType::F16);
    assert_eq!(refused(&other_spec, &saved), SavedSessionError::OtherModel);
    let other_cache = engine(Family::Llama, 7, KvDType::F32);
    assert_eq!(refused(&other_cache, &saved), SavedSessionError::OtherCache);
    assert_eq!(
        other_cache.save_session(&session),
        Err(EngineError::ForeignSession)
    );

    assert_eq!(refused(&engine_a, b"GGUF"), SavedSessionError::NoSession);
    assert_eq!(refused(&engine_a, b""), SavedSessionError::NoSession);
    for len in 8..saved.len() {
        let error = refused(&engine_a, &saved[..len]);
        assert!(
            matches!(error, SavedSessionError::Length { .. }),
            "{len}: {error}"
        );
    }
    let longer = [&saved[..], &[0]].concat();
    assert!(matches!(
        refused(&engine_a, &longer),
        SavedSessionError::Length { .. }
    ));
    assert_eq!(
        engine_a.restore_session(&saved, 9).unwrap_err(),
        SavedSessionError::TooLong {
            n_tokens: 10,
            n_ctx: 9
        }
    );
    let too_large = engine_a.restore_session(&saved, 1 << 20).unwrap_err();
    assert!(matches!(
        too_large,
        SavedSessionError::Engine(EngineError::ContextSize { .. })
    ));
}

/// Bytes that somebody forged, with a sum that fits.
fn forged(saved: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = saved.to_vec();
    change(&mut bytes);
    let sum = crate::xxh64::xxh64(&bytes[16..], 0);
    bytes[8..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn forged_contents_are_refused() {
    let engine = engine(Family::Llama, 7, KvDType::F16);
    let mut session = engine.session(64).unwrap();
    bits(&engine, &mut session, &ids(10));
    let saved = engine.save_session(&session).unwrap();
    let refused = |bytes: &[u8]| engine.restore_session(bytes, 64).unwrap_err();
    let counts = forged(&saved, |b| b[28..32].fill(0xFF));
    assert!(matches!(refused(&counts), SavedSessionError::Length { .. }));
    let id = forged(&saved, |b| b[32..36].fill(0xFF));
    assert!(matches!(
        refused(&id),
        SavedSessionError::Engine(EngineError::TokenId { .. })
    ));
    let nan = forged(&saved, |b| b[72..74].fill(0xFF));
    assert_eq!(refused(&nan), SavedSessionError::Damaged);
}

/// The output matrix times the hidden state is the logits: with F32 weights, where the product has one definition.
#[test]
fn hidden_states_are_what_the_output_matrix_reads() {
    for family in Family::ALL {
        let file = tiny_model(family, DType::F32, 7);
        let gguf = Gguf::parse(file.into()).unwrap();
        let engine = CpuEngine::new(&gguf, &CpuOptions::default()).unwrap();
        let name = if engine.spec().tied_embedding {
            "token_embd.weight"
        } else {
            "output.weight"
        };
        let output = gguf.tensor_f32(name).unwrap();
        let tokens = ids(40);
        let mut logits = Vec::new();
        let mut keep = |_: usize, row: &[f32]| logits.push(row.to_vec());
        engine
            .forward_all(&mut engine.session(64).unwrap(), &tokens, &mut keep)
            .unwrap();
        let mut session = engine.session(64).unwrap();
        let mut n_rows = 0;
        let mut each = |t: usize, hidden: &[f32]| {
            assert_eq!(t, n_rows);
            n_rows += 1;
            for (row, want) in output.chunks_exact(hidden.len()).zip(&logits[t]) {
                let products = row
                    .iter()
                    .zip(hidden)
                    .map(|(w, x)| f64::from(*w) * f64::from(*x));
                let got: f64 = products.sum();
                assert!(
                    (got - f64::from(*want)).abs() < 1e-4,
                    "{family:?}: {got} {want}"
                );
            }
        };
        engine
            .forward_hidden(&mut session, &tokens, &mut each)
            .unwrap();
        assert_eq!((n_rows, session.tokens()), (40, &tokens[..]));
    }
}

proptest! {
    #[test]
    fn any_changed_byte_is_noticed(at in 0_usize..4000, to in any::<u8>()) {
        let engine = engine(Family::Llama, 7, KvDType::F16);
        let mut session = engine.session(64).unwrap();
        bits(&engine, &mut session, &ids(3));
        let mut saved = engine.save_session(&session).unwrap();
        let at = at % saved.len();
        prop_assume!(saved[at] != to);
        saved[at] = to;
        prop_assert!(engine.restore_session(&saved, 64).is_err());
    }
}
