//! An HTTP call being read: its time to live, its query and its body, each
//! strictly. Whatever is not asked for is refused. It does not know the routes.

use crate::api::auth::{Slot, Who};
use crate::api::convert::json;
use crate::api::convert::value;
use crate::api::error::Failure;
use crate::api::service::list::{MAX_PER_PAGE, NumberPage};
use crate::api::service::{Call, DEFAULT_DEADLINE, MAX_DEADLINE};
use crate::raft::Consistency;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use nf_core::id::{Digest16, NameError, TenantId};
use nf_core::reason::{Reason, Refusal, printable};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Query parameters of one call.
const MAX_PARAMS: usize = 32;

/// A call as it came.
pub struct Ask {
    pub headers: HeaderMap,
    pub who: Who,
    slot: Slot,
    params: Vec<(String, String)>,
    known: Vec<&'static str>,
    body: Body,
}

impl<S: Send + Sync> FromRequest<S> for Ask {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        // Only the gate puts it there: a route that was built around it answers nothing.
        let who = parts.extensions.get::<Who>().cloned();
        let who = who.ok_or_else(|| Failure::new(Reason::Internal, "this call passed no gate"))?;
        let slot = parts.extensions.get::<Slot>().cloned().unwrap_or_default();
        let bad = |text: String| Failure::new(Reason::InvalidArgument, format!("the query cannot be read: {text}"));
        let Query(params) =
            Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(|error| bad(error.body_text()))?;
        if params.len() > MAX_PARAMS {
            return Err(bad(format!("more than {MAX_PARAMS} parameters")));
        }
        Ok(Self { headers: parts.headers, who, slot, params, known: Vec::new(), body })
    }
}

/// The part of the path that a route leaves open, or both of them.
pub struct Part<T = String>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Part<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        let bad = |_| Refusal::field(Reason::InvalidArgument, "path", "the path is not UTF-8 once it is unescaped");
        Ok(Self(read.map_err(bad)?.0))
    }
}

impl Ask {
    /// A query parameter, at most once.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, Failure> {
        self.known.push(name);
        let mut found = self.params.iter().filter(|(key, _)| key == name);
        let first = found.next();
        if found.next().is_some() {
            return Err(Refusal::invalid(name, format!("{name} is given more than once")).into());
        }
        Ok(first.map(|(_, value)| value.clone()).filter(|value| !value.is_empty()))
    }

    pub fn number(&mut self, name: &'static str, most: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let bad = || Refusal::invalid(name, format!("{name}: a whole number from 0 to {most}"));
        let digits = text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
        let number: Option<u64> = digits.then(|| text.parse().ok()).flatten();
        Ok(Some(number.filter(|n| *n <= most).ok_or_else(bad)?))
    }

    pub fn flag(&mut self, name: &'static str) -> Result<bool, Failure> {
        match self.text(name)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(Refusal::invalid(name, format!("{name}: true or false")).into()),
        }
    }

    pub fn name<T>(&mut self, name: &'static str, new: fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Failure> {
        let bad = |error: NameError| Failure::from(Refusal::invalid(name, error.to_string()));
        self.text(name)?.map(|text| new(&text).map_err(bad)).transpose()
    }

    /// Which page of a numbered list.
    pub fn page(&mut self) -> Result<NumberPage, Failure> {
        let token = self.text("next_token")?;
        let per_page = self.number("per_page", MAX_PER_PAGE as u64)?;
        Ok(NumberPage::new(token.as_deref(), per_page)?)
    }

    /// The call that this is when it changes something: it is bound to one tenant.
    pub fn act(&mut self) -> Result<Call, Failure> {
        let mut call = self.call()?;
        call.tenant = call.who.acts(call.tenant)?;
        Ok(call)
    }

    /// The call that this is, with the parameters that every read has.
    pub fn call(&mut self) -> Result<Call, Failure> {
        let mut call = Call { slot: self.slot.clone(), ..Call::within(self.who.clone(), self.time()?) };
        call.consistency = match self.text("consistency")?.as_deref() {
            None | Some("linearizable") => Consistency::Linearizable,
            Some("stale") => Consistency::Stale,
            Some(_) => return Err(Refusal::invalid("consistency", "linearizable or stale").into()),
        };
        call.tenant = call.who.sees(self.name("tenant_id", TenantId::new)?)?;
        call.past_index = self.number("index", u64::MAX)?;
        if let Some(wait) = self.text("wait")? {
            let ms = value::span(&wait).map_err(|text| Refusal::invalid("wait", format!("wait: {text}")))?;
            call.wait = Duration::from_millis(ms).min(MAX_DEADLINE);
            // The wait comes on top of the time that the read itself may take.
            call.deadline += call.wait;
        } else if call.past_index.is_some() {
            call.wait = DEFAULT_DEADLINE;
            call.deadline += call.wait;
        }
        Ok(call)
    }

    /// The form of the object that the caller has seen, from `If-Match`.
    pub fn if_match(&self) -> Result<Option<Digest16>, Failure> {
        let Some(value) = self.headers.get(header::IF_MATCH) else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().trim_matches('"');
        let bad = |_| Refusal::invalid("If-Match", "If-Match: one ETag as an answer gave it, in quotes");
        Ok(Some(value::digest(text).map_err(bad)?))
    }

    /// How long the call may take.
    fn time(&self) -> Result<Duration, Failure> {
        const HEADER: &str = "x-nf-timeout-ms";
        let Some(value) = self.headers.get(HEADER) else { return Ok(DEFAULT_DEADLINE) };
        let most = MAX_DEADLINE.as_millis();
        let bad = || Refusal::invalid("X-NF-Timeout-Ms", format!("milliseconds from 1 to {most}"));
        let ms: u64 = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|ms| *ms > 0).ok_or_else(bad)?;
        Ok(Duration::from_millis(ms).min(MAX_DEADLINE))
    }

    /// # Errors
    /// The first parameter that nobody asked for.
    pub fn finish(&self) -> Result<(), Failure> {
        let stranger = self.params.iter().find(|(key, _)| !self.known.contains(&key.as_str()));
        let Some((stranger, _)) = stranger else { return Ok(()) };
        let shown = printable(stranger, 64);
        let detail = format!("{shown} is not a known parameter; known here: {}", self.known.join(", "));
        Err(Refusal::field(Reason::UnknownField, shown, detail).into())
    }

    /// The body's fields. `optional`: no body at all is an empty object.
    pub async fn json(self, optional: bool) -> Result<Map<String, Value>, Failure> {
        self.json_within(BODY_TIME, optional).await
    }

    async fn json_within(self, time: Duration, optional: bool) -> Result<Map<String, Value>, Failure> {
        let declared = self.headers.get(header::CONTENT_TYPE).map(|value| is_json(value.as_bytes()));
        let reading = axum::body::to_bytes(self.body, json::MAX_BODY);
        let bytes = match tokio::time::timeout(time, reading).await {
            Err(_) => {
                let detail = format!("the body did not arrive within {time:?}; send it again");
                return Err(Refusal::field(Reason::BodyTimeout, "body", detail).into());
            }
            Ok(Err(_)) => {
                let detail = format!("the body has more than {} bytes or was cut off", json::MAX_BODY);
                return Err(Failure::new(Reason::TooLarge, detail));
            }
            Ok(Ok(bytes)) => bytes,
        };
        if bytes.is_empty() && optional {
            return Ok(Map::new());
        }
        if declared != Some(true) {
            let detail = "the body must be JSON; send the header content-type: application/json";
            return Err(Refusal::field(Reason::UnsupportedMediaType, "Content-Type", detail).into());
        }
        Ok(json::parse(&bytes)?)
    }
}

fn is_json(content_type: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(content_type) else { return false };
    let kind = text.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    async fn ask(uri: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Ask, Failure> {
        let mut request = Request::builder().uri(uri).extension(Who::Anyone);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ask::from_request(request.body(Body::from(body.to_vec())).unwrap(), &()).await
    }

    #[tokio::test]
    async fn parameters_are_read_strictly() {
        let mut ok = ask("/x?index=7&wait=2s&consistency=stale&tenant_id=t1", &[], b"").await.unwrap();
        let call = ok.call().unwrap();
        assert_eq!(
            (call.past_index, call.wait, call.consistency),
            (Some(7), Duration::from_secs(2), Consistency::Stale)
        );
        ok.finish().unwrap();
        for bad in ["?index=-1", "?index=9223372036854775808999", "?consistency=maybe", "?index=1&index=2", "?wait=x"] {
            let failure = ask(&format!("/x{bad}"), &[], b"").await.unwrap().call().unwrap_err();
            assert_eq!(failure.refusal.reason, Reason::InvalidArgument, "{bad}");
        }
        let mut stranger = ask("/x?tenat_id=t1", &[], b"").await.unwrap();
        stranger.call().unwrap();
        let refusal = stranger.finish().unwrap_err().refusal;
        assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::UnknownField, Some("tenat_id")));
    }

    #[tokio::test]
    async fn a_write_ends_while_its_id_is_remembered() {
        let time = [("x-nf-timeout-ms", "60000")];
        let before = std::time::Instant::now();
        let call = ask("/x?index=7&wait=60s", &time, b"").await.unwrap().call().unwrap();
        assert!(call.deadline >= before + 2 * MAX_DEADLINE, "a read may wait first");
        assert!(call.write_by <= std::time::Instant::now() + MAX_DEADLINE);
        assert!(MAX_DEADLINE.as_millis() <= u128::from(nf_core::apply::MINTED_MS));
    }

    #[tokio::test]
    async fn a_body_that_stays_away_is_its_callers_time_out() {
        let begun = futures::stream::once(async { Ok::<_, std::io::Error>("{\"a\":") });
        let body = Body::from_stream(begun.chain(futures::stream::pending()));
        let request = Request::builder().uri("/x").extension(Who::Anyone).body(body).unwrap();
        let ask = Ask::from_request(request, &()).await.unwrap();
        let failure = ask.json_within(Duration::from_millis(20), false).await.unwrap_err();
        assert_eq!((failure.refusal.reason, failure.codes().http), (Reason::BodyTimeout, 408));
    }

    #[tokio::test]
    async fn bodies_are_typed_and_bounded() {
        let json = [("content-type", "application/json; charset=utf-8")];
        assert!(ask("/x", &json, b"{\"a\":1}").await.unwrap().json(false).await.is_ok());
        assert!(ask("/x", &[], b"").await.unwrap().json(true).await.unwrap().is_empty());
        let reason = |r: Result<Map<String, Value>, Failure>| r.unwrap_err().refusal.reason;
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let got = ask("/x", &form, b"{}").await.unwrap().json(false).await;
        assert_eq!(reason(got), Reason::UnsupportedMediaType);
        let got = ask("/x", &[], b"{}").await.unwrap().json(false).await;
        assert_eq!(reason(got), Reason::UnsupportedMediaType);
        let got = ask("/x", &json, &vec![b' '; json::MAX_BODY + 1]).await.unwrap().json(false).await;
        assert_eq!(reason(got), Reason::TooLarge);
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(40), "]".repeat(40));
        for bad in ["", "{", "[]", "1", "{\"a\":1e999}", "{\"a\":NaN}", deep.as_str()] {
            let got = ask("/x", &json, bad.as_bytes()).await.unwrap().json(false).await;
            assert_eq!(reason(got), Reason::InvalidArgument, "{bad}");
        }
    }
}
