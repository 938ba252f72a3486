//! Which models there are, as OpenAI's clients ask for them. It knows no replicas.

use super::refusal::Refused;
use super::{Gateway, TENANT};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use nf_core::id::{ModelId, TenantId};

pub async fn models(State(gateway): State<Gateway>, headers: HeaderMap) -> Response {
    let only = match headers.get(TENANT).map(|value| TenantId::new(value.to_str().unwrap_or_default())) {
        None => None,
        Some(Ok(tenant)) => Some(tenant),
        Some(Err(e)) => return gateway.refuse(Refused::Bad { field: TENANT, detail: e.to_string() }),
    };
    let Some(table) = gateway.heard(|table| table.known.then(|| table.clone())).await else {
        return gateway.refuse(Refused::Behind);
    };
    let listed = table.names().filter(|(tenant, _)| only.as_ref().is_none_or(|only| only == *tenant));
    let listed: Vec<_> = listed.map(|(tenant, model)| described(tenant, model)).collect();
    let body = serde_json::json!({ "object": "list", "data": listed });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

pub async fn model(State(gateway): State<Gateway>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let found = async {
        let bad = |detail: String| Refused::Bad { field: "model", detail };
        let model = ModelId::new(&name).map_err(|e| bad(e.to_string()))?;
        let tenant = gateway.tenant(&headers, &model).await?;
        match gateway.0.tables.borrow().entry(&tenant, &model) {
            Some(_) => Ok(described(&tenant, &model)),
            None => Err(Refused::NoModel(model)),
        }
    };
    match found.await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response(),
        Err(refused) => gateway.refuse(refused),
    }
}

/// A model, as OpenAI's clients read one.
fn described(tenant: &TenantId, model: &ModelId) -> serde_json::Value {
    serde_json::json!({ "id": model.as_str(), "object": "model", "created": 0, "owned_by": tenant.as_str() })
}
