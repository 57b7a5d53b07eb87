//! Sessions of generations that have ended, by their tokens, so that a prompt which begins as one of them did is read from there: a
//! conversation that goes on, or a system message that many share. That changes no result: any chunking gives the same bits.

use fledgling_core::cpu::{EngineError, Session};

/// The kept sessions, the one used longest ago first.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    sessions: Vec<Session>,
}

impl PrefixCache {
    /// A session that holds the longest known beginning of `context`, without the last token, whose logits are wanted. What is
    /// known of others stays theirs: it is copied, unless nothing but it is there.
    ///
    /// # Errors
    /// When the memory for a copy cannot be had.
    pub(crate) fn take(&mut self, context: &[u32]) -> Result<Option<Session>, EngineError> {
        let known = |session: &Session| known_len(session, context);
        let best = (0..self.sessions.len()).max_by_key(|&i| known(&self.sessions[i]));
        let Some(i) = best.filter(|&i| known(&self.sessions[i]) > 0) else {
            return Ok(None);
        };
        let session = self.sessions.remove(i);
        let len = known(&session);
        if len == session.tokens().len() {
            return Ok(Some(session));
        }
        let fork = session.fork(len);
        self.sessions.push(session);
        fork.map(Some)
    }

    /// Keeps a session, in the place of those that it goes on from.
    pub(crate) fn keep(&mut self, session: Session) {
        let tokens = session.tokens();
        let is_beginning = |a: &[u32], b: &[u32]| a.len() <= b.len() && *a == b[..a.len()];
        if tokens.is_empty()
            || self
                .sessions
                .iter()
                .any(|other| is_beginning(tokens, other.tokens()))
        {
            return;
        }
        self.sessions
            .retain(|other| !is_beginning(other.tokens(), tokens));
        self.sessions.push(session);
    }

    /// Gives up sessions, the one used longest ago first, until the rest takes at most `limit_bytes`.
    pub(crate) fn shrink_to(&mut self, limit_bytes: usize) {
        let mut bytes = self.bytes();
        let n_over = self.sessions.iter().take_while(|session| {
            let is_over = bytes > limit_bytes;
            bytes -= if is_over { session.reserved_bytes() } else { 0 };
            is_over
        });
        let n_over = n_over.count();
        self.sessions.drain(..n_over);
    }

    /// Bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.sessions.iter().map(Session::reserved_bytes).sum()
    }
}

/// How many of the session's tokens `context` begins with; never all of `context`, because the last one's logits are wanted.
pub(crate) fn known_len(session: &Session, context: &[u32]) -> usize {
    let n_common = session.common_prefix_len(context);
    n_common.min(context.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{
        cpu::{CpuEngine, CpuOptions},
        gguf::Gguf,
        quant::DType,
        spec::Family,
        testing::tiny_model,
    };

    fn engine() -> CpuEngine {
        let file = tiny_model(Family::Llama, DType::Q8_0, 1);
        CpuEngine::new(&Gguf::parse(file.into()).unwrap(), &CpuOptions::default()).unwrap()
    }

    fn session(engine: &CpuEngine, tokens: &[u32]) -> Session {
        let mut session = engine.growing_session(64).unwrap();
        engine.forward(&mut session, tokens).unwrap();
        session
    }

    fn kept(cache: &PrefixCache) -> Vec<&[u32]> {
        cache.sessions.iter().map(Session::tokens).collect()
    }

    #[test]
    fn the_longest_known_beginning_is_found() {
        let engine = engine();
        let mut cache = PrefixCache::default();
        cache.keep(session(&engine, &[1, 2, 3, 4]));
        cache.keep(session(&engine, &[1, 2, 5]));
        let mut take = |context: &[u32]| {
            let found = cache.take(context).unwrap();
            found.map(|session| session.tokens().to_vec())
        };
        assert_eq!(take(&[9, 9]), None);
        assert_eq!(take(&[]), None);
        assert_eq!(take(&[1, 2, 3, 9]), Some(vec![1, 2, 3]), "a copy");
        assert_eq!(
            take(&[1, 2, 5]),
            Some(vec![1, 2]),
            "the last token is to be fed"
        );
        assert_eq!(
            take(&[1, 2, 5, 6]),
            Some(vec![1, 2, 5]),
            "all of it: taken out"
        );
        assert_eq!(take(&[1, 2, 5, 6]), Some(vec![1, 2]));
        assert_eq!(kept(&cache), [&[1, 2, 3, 4]]);
    }

    #[test]
    fn what_a_session_goes_on_from_is_in_it() {
        let engine = engine();
        let mut cache = PrefixCache::default();
        for tokens in [&[1, 2][..], &[1, 2, 3], &[4], &[1, 2], &[1, 2, 4]] {
            cache.keep(session(&engine, tokens));
        }
        cache.keep(engine.growing_session(8).unwrap());
        assert_eq!(kept(&cache), [&[1, 2, 3][..], &[4], &[1, 2, 4]]);
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let engine = engine();
        let mut cache = PrefixCache::default();
        for first in 1..=4 {
            cache.keep(session(&engine, &[first, 7, 7]));
        }
        let each = 3 * engine.position_bytes();
        assert_eq!(cache.bytes(), 4 * each);
        cache.take(&[1, 7, 8]).unwrap();
        cache.shrink_to(3 * each + 1);
        assert_eq!(kept(&cache), [&[3, 7, 7], &[4, 7, 7], &[1, 7, 7]]);
        cache.shrink_to(0);
        assert_eq!(cache.bytes(), 0);
    }
}
