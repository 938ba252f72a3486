//! Our connections, as `object_store` wants them: what is no file is read up to a bound,
//! and each fault keeps its name through the library's errors. It knows no store.

use crate::outgoing::{Client, Fault};
use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};

/// What is kept of an answer that is no file: errors, lists, credentials.
const MAX_TALK: usize = 1 << 20;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Transport(pub(super) Client<HttpRequestBody>);

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let file = *request.method() == http::Method::GET;
        let answer = self.0.send(request).await.map_err(|e| {
            let known = Fault::below(e.as_ref()).is_some();
            HttpError::new_boxed(if known { HttpErrorKind::Unknown } else { HttpErrorKind::Interrupted }, e)
        })?;
        let (parts, body) = answer.into_parts();
        let body = body.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e));
        let body = match file && parts.status.is_success() {
            true => HttpResponseBody::new(body),
            // These are read as a whole, by the library.
            false => {
                let limited = Limited::new(body, MAX_TALK);
                HttpResponseBody::new(limited.map_err(|e| HttpError::new_boxed(HttpErrorKind::Decode, e)))
            }
        };
        Ok(HttpResponse::from_parts(parts, body))
    }
}
