//! `POST /v1/embeddings`: the mean of the hidden states of an input behind the last norm, scaled to length 1. A language model was not
//! trained for this; texts of the same matter come out near each other, but a model made for embeddings is better at it.

use crate::{
    error::{ApiError, json_response},
    job::{Event, Work},
    request::EmbedAsk,
    state::ApiState,
};
use axum::{http::StatusCode, response::Response};
use serde_json::{Value, json};

/// Answers a request for embeddings.
///
/// # Errors
/// When an input does not fit the context, the queue is full, or computing failed.
pub(crate) async fn answer(
    state: &ApiState,
    request_id: String,
    ask: EmbedAsk,
) -> Result<Response, ApiError> {
    let n_embd = state.info().spec.n_embd;
    if ask.dimensions.is_some_and(|asked| asked != n_embd) {
        return Err(ApiError::unsupported(
            "dimensions",
            format!("this model's embeddings have {n_embd} dimensions"),
        ));
    }
    let mut works = Vec::with_capacity(ask.inputs.len());
    let mut n_tokens = 0;
    for input in ask.inputs {
        let tokens = state
            .encode(input, true)
            .await
            .map_err(ApiError::in_input)?;
        if tokens.len() > state.n_ctx() {
            return Err(ApiError::input_too_long(tokens.len(), state.n_ctx()));
        }
        n_tokens += tokens.len();
        let sums = vec![0.0; n_embd];
        works.push(Work::Embed { tokens, sums });
    }
    let mut data = vec![Value::Null; works.len()];
    let mut events = state.submit(works, request_id)?;
    let mut n_missing = data.len();
    while n_missing > 0 {
        match events.recv().await {
            Some(Event::Embedding { choice, values }) => {
                let embedding = if ask.base64 {
                    json!(base64(&values))
                } else {
                    json!(values)
                };
                data[choice] =
                    json!({"object": "embedding", "index": choice, "embedding": embedding});
                n_missing -= 1;
            }
            Some(Event::Prefilled { .. }) => {}
            _ => return Err(ApiError::internal()),
        }
    }
    let body = json!({
        "object": "list",
        "data": data,
        "model": state.model_id(),
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// Little-endian f32 in base64 (RFC 4648, section 4).
fn base64(values: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| group.get(i).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn it_is_base64() {
        // Python: base64.b64encode(struct.pack("<f", 1.0)), and of [1.0, -0.5] and [1.0, -0.5, 3.25].
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -0.5]), "AACAPwAAAL8=");
        assert_eq!(base64(&[1.0, -0.5, 3.25]), "AACAPwAAAL8AAFBA");
    }
}
