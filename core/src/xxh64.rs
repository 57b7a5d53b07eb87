//! XXH64 (Y. Collet, "xxHash fast digest algorithm", specification 0.1.1): a checksum that runs at the speed of memory.
//! It finds accidents and is no protection from somebody who wants two inputs to match.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// XXH64 of `bytes` with a seed, which may be the hash of what came before.
pub(crate) fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let stripes = bytes.chunks_exact(32);
    let tail = stripes.remainder();
    let mut hash = if bytes.len() < 32 {
        seed.wrapping_add(P5)
    } else {
        let mut lanes = [
            seed.wrapping_add(P1).wrapping_add(P2),
            seed.wrapping_add(P2),
            seed,
            seed.wrapping_sub(P1),
        ];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, u64_le(word));
            }
        }
        let [a, b, c, d] = lanes;
        let sum = a.rotate_left(1).wrapping_add(b.rotate_left(7));
        let sum = sum.wrapping_add(c.rotate_left(12));
        let sum = sum.wrapping_add(d.rotate_left(18));
        let merge =
            |hash: u64, lane: u64| (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
        lanes.into_iter().fold(sum, merge)
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    let words = tail.chunks_exact(8);
    let mut rest = words.remainder();
    for word in words {
        hash = (hash ^ round(0, u64_le(word))).rotate_left(27);
        hash = hash.wrapping_mul(P1).wrapping_add(P4);
    }
    if rest.len() >= 4 {
        let (half, bytes) = rest.split_at(4);
        hash = (hash ^ u64_le(half).wrapping_mul(P1)).rotate_left(23);
        hash = hash.wrapping_mul(P2).wrapping_add(P3);
        rest = bytes;
    }
    for &byte in rest {
        hash = (hash ^ u64::from(byte).wrapping_mul(P5)).rotate_left(11);
        hash = hash.wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

fn round(lane: u64, word: u64) -> u64 {
    let lane = lane.wrapping_add(word.wrapping_mul(P2));
    lane.rotate_left(31).wrapping_mul(P1)
}

/// Up to eight bytes as a number, the first the least.
fn u64_le(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::xxh64;

    #[test]
    fn it_is_xxh64() {
        // By the reference implementation (python-xxhash).
        let bytes: Vec<u8> = (0..101_u32).map(|i| (i * 7 + i * i) as u8).collect();
        let want = [
            (1, 0, 0xE934_A84A_DB05_2768),
            (7, 3, 0x44B8_F6BD_30F3_393E),
            (12, 0, 0x0436_65C4_47D2_2A2A),
            (31, 1, 0x28A1_E8EF_4E8E_2B3A),
            (64, 2, 0xDB43_8F1F_CFBB_BE83),
            (101, u64::MAX, 0x82F7_C643_DAB8_CCA4),
        ];
        for (len, seed, hash) in want {
            assert_eq!(xxh64(&bytes[..len], seed), hash, "{len} bytes, seed {seed}");
        }
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
    }
}
