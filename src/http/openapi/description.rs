//! How the document is made: what the handlers' descriptions have in common is added here, once.

use std::fs;
use std::path::Path;

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{AdditionalProperties, ArrayItems, KnownFormat, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Required, Response,
    ResponseBuilder,
};
use utoipa::{OpenApi as _, ToSchema};

use super::DOCUMENT;
use crate::http::dto::agents::Balance;
use crate::http::dto::schema;
use crate::http::problem::{PROBLEM_JSON, ProblemDocument};
use crate::http::router::Described;

/// Set to have the file written instead of compared.
const WRITE: &str = "TRADEPOST_WRITE_OPENAPI";

#[test]
fn the_file_says_what_the_handlers_do() {
    let mut document = preamble().merge_from(Described::openapi());
    complete(&mut document);
    let text = document.to_pretty_json().expect("the document is strings, numbers, lists and maps") + "\n";
    if std::env::var_os(WRITE).is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/openapi/openapi.json");
        fs::write(path, text).expect("the file can be written");
        return;
    }
    assert!(
        text == DOCUMENT,
        "openapi.json is not that of these handlers; `{WRITE}=1 cargo test --lib openapi` writes it"
    );
}

/// What stands before the routes.
fn preamble() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Tradepost")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "A trading post for AI agents: a registry of agents, a ledger of what they owe each other, and discovery over \
             both. Writes answer only after they are durable. When several things are wrong with a request, the answer \
             names the first of: 403, 401, 404 (route), 405, 415, 413, 400, 422, 404 (entity), 412, 409. A field that may \
             be left out may not be null instead, `billing_notes` excepted. HEAD is answered as GET.",
        ))
        .build();
    OpenApiBuilder::new().info(info).paths(Paths::new()).components(Some(Components::new())).build()
}

fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let open = matches!(path.as_str(), "/livez" | "/readyz");
        for (writes, operation) in operations(item) {
            make_optional_parts_absent(operation);
            require_bodies(operation);
            add_common_problems(operation, open, writes);
            operation.security = Some(if open {
                Vec::new()
            } else {
                // Either: whether a token is needed is the operator's choice.
                vec![SecurityRequirement::default(), SecurityRequirement::new("token", Vec::<String>::new())]
            });
        }
    }
    let components = document.components.get_or_insert_with(Components::new);
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.security_schemes.insert("token".to_owned(), RefOr::T(bearer));
    // Parameters and maps refer to schemas without bringing them along.
    add::<ProblemDocument>(components);
    add::<schema::AgentId>(components);
    add::<schema::TransactionId>(components);
    add::<schema::Capability>(components);
    add::<schema::Currency>(components);
    add::<schema::Availability>(components);
    add::<schema::Status>(components);
    add::<schema::TimeInput>(components);
    add::<schema::IdempotencyKey>(components);
    add::<schema::EntityTags>(components);
    add::<schema::TransactionCursor>(components);
    add::<schema::AgentCursor>(components);
    add::<schema::ParkedCursor>(components);
    add::<Balance>(components);
    add_replacement(components);
    for schema in components.schemas.values_mut() {
        close(schema);
    }
}

fn add<T: ToSchema>(components: &mut Components) {
    components.schemas.insert(T::name().into_owned(), T::schema());
    let mut referenced = Vec::new();
    T::schemas(&mut referenced);
    components.schemas.extend(referenced);
}

/// The operations of a path, and whether they write.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (bool, &mut Operation)> {
    [
        (false, item.get.as_mut()),
        (true, item.post.as_mut()),
        (true, item.put.as_mut()),
        (true, item.patch.as_mut()),
        (true, item.delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(writes, operation)| Some((writes, operation?)))
}

fn add_common_problems(operation: &mut Operation, open: bool, writes: bool) {
    let takes_values =
        operation.request_body.is_some() || operation.parameters.as_ref().is_some_and(|all| !all.is_empty());
    let takes_body = operation.request_body.is_some();
    let common = [
        (400, "`invalid_request`: malformed; `field` names the culprit", true),
        (401, "`unauthorized`: the bearer token is missing or wrong", !open),
        (403, "`forbidden_host`, `forbidden_origin`", true),
        (408, "`request_timeout`: the request did not arrive in time", true),
        (413, "`body_too_large`", takes_body),
        (415, "`unsupported_media_type`", takes_body || writes),
        (422, "`invalid_<field>`: a value breaks a rule; or `idempotency_key_reused`", takes_values),
        (431, "`headers_too_large`", true),
        (503, "`overloaded`, `store_unavailable`; see `Retry-After`", true),
        (507, "`storage_full`: the last commit failed for lack of space", writes),
    ];
    for (status, description, applies) in common {
        if applies {
            let response = ResponseBuilder::new().description(description).build();
            operation.responses.responses.entry(status.to_string()).or_insert(RefOr::T(response));
        }
    }
    for (status, response) in &mut operation.responses.responses {
        if let (RefOr::T(response), true) = (response, status.as_str() >= "400") {
            add_problem_body(response);
        }
    }
}

fn add_problem_body(response: &mut Response) {
    let schema = Ref::from_schema_name(ProblemDocument::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    response.content.insert(PROBLEM_JSON.to_owned(), RefOr::T(content));
}

/// PUT's body: a registration whose id may be left to the path.
fn add_replacement(components: &mut Components) {
    let Some(RefOr::T(Schema::Object(registration))) = components.schemas.get("Registration") else { return };
    let mut replacement = registration.clone();
    replacement.description =
        Some("An agent that registers, or replaces what it said before; the path names it.".to_owned());
    replacement.required.retain(|field| field != "agent_id");
    components.schemas.insert("Replacement".to_owned(), RefOr::T(Schema::Object(replacement)));
}

/// What an optional value's type becomes where absence is the only way to leave it out: a header, or a whole body.
fn without_null(schema: &mut RefOr<Schema>) -> bool {
    match schema {
        RefOr::T(Schema::Object(object)) => {
            let SchemaType::Array(types) = &mut object.schema_type else { return false };
            types.retain(|kind| *kind != Type::Null);
            true
        }
        RefOr::T(Schema::OneOf(one_of)) => {
            let is_null = |item: &RefOr<Schema>| matches!(item, RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null));
            if !one_of.items.iter().any(is_null) {
                return false;
            }
            one_of.items.retain(|item| !is_null(item));
            if let [only] = &one_of.items[..] {
                *schema = only.clone();
            }
            true
        }
        _ => false,
    }
}

/// A body that is not said to be optional is none.
fn require_bodies(operation: &mut Operation) {
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        body.required.get_or_insert(Required::True);
    }
}

fn make_optional_parts_absent(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && let Some(schema) = &mut parameter.schema
        {
            without_null(schema);
        }
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        for content in body.content.values_mut() {
            if let RefOr::T(content) = content
                && let Some(schema) = &mut content.schema
                && without_null(schema)
            {
                body.required = Some(Required::False);
            }
        }
    }
}

/// Says of every object that it has no other members than those named: so it is read, and so it is written.
fn close(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            let is_object = object.schema_type == SchemaType::Type(Type::Object);
            if is_object && object.additional_properties.is_none() {
                object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            }
            // The ranges are exact; 32 bits with a sign would contradict some of them.
            if object.format == Some(SchemaFormat::KnownFormat(KnownFormat::Int32)) {
                object.format = Some(SchemaFormat::KnownFormat(KnownFormat::Int64));
            }
            object.properties.values_mut().for_each(close);
        }
        Schema::Array(array) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                close(items);
            }
        }
        Schema::OneOf(one_of) => one_of.items.iter_mut().for_each(close),
        Schema::AnyOf(any_of) => any_of.items.iter_mut().for_each(close),
        _ => {}
    }
}

mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{
        Agent, AgentId, AgentVersion, AvailabilityStatus, Capabilities, Capability, Currency, Event, EventBody,
        EventId, Facts, JsonObject, Money, NodeId, ResolutionOutcome, Timestamp, Total, Transaction, TransactionId,
        TransactionStatus, Ttl,
    };
    use crate::engine::replica::SinkStatus;
    use crate::engine::{self, LeaseState};
    use crate::http::dto::agents::{Profile, balances};
    use crate::http::dto::operations::{SinkShown, Sinks, StatusShown, StoreShown};
    use crate::http::dto::transactions::{EventShown, Settlement, TransactionShown};
    use crate::http::dto::{Items, List, Shown};
    use crate::http::problem::Problem;

    /// Checks a value against a schema of the document.
    fn conforms(schema: &str, value: &Value) -> Result<(), String> {
        let mut root: Value = serde_json::from_str(DOCUMENT).unwrap();
        root["$ref"] = json!(format!("#/components/schemas/{schema}"));
        let validator = jsonschema::validator_for(&root).unwrap();
        validator.validate(value).map_err(|error| format!("{schema} {}: {error}", error.instance_path()))
    }

    fn shown(value: impl serde::Serialize) -> Value {
        serde_json::from_slice(&serde_json::to_vec(&value).unwrap()).unwrap()
    }

    fn transaction() -> Transaction {
        Transaction {
            transaction_id: TransactionId::from_stored("t1"),
            created_at: Timestamp::from_micros(1),
            facts: Arc::new(facts()),
            status: TransactionStatus::Settled,
            evidence: vec!["e".into()],
            updated_at: Timestamp::from_micros(2),
            settled_at: Some(Timestamp::from_micros(2)),
            finality: crate::domain::transaction::Finality::Local,
        }
    }

    fn facts() -> Facts {
        Facts {
            payer_agent: AgentId::from_stored("a"),
            provider_agent: AgentId::from_stored("b"),
            capability: Capability::from_stored("python"),
            amount: Money::parse("18.50").unwrap(),
            currency: Currency::default(),
            context: JsonObject::parse(r#"{"n":[1.10]}"#).unwrap(),
        }
    }

    fn profile() -> engine::Profile {
        let agent = Agent {
            agent_id: AgentId::from_stored("thon"),
            name: "Thon".into(),
            capabilities: Capabilities::parse(["python"]).unwrap(),
            cost_per_task: Money::ZERO,
            currency: Currency::default(),
            billing_notes: None,
            availability: AvailabilityStatus::Online,
            capacity_per_hour: Default::default(),
            last_updated: Timestamp::from_micros(1),
            reputation: Default::default(),
            metadata: JsonObject::default(),
            revision: 7,
            ttl: Ttl::default(),
            expires_at: Timestamp::from_micros(1),
            expired: false,
            version: AgentVersion { epoch: 1, seq: 1, node_id: NodeId::from_bytes([1; 16]) },
            claimed: true,
            baseline: Default::default(),
        };
        engine::Profile { agent, expires_at: Timestamp::from_micros(5), lease: LeaseState::Live, local: true }
    }

    #[test]
    fn answers_conform_to_their_schemas_and_nothing_else_does() {
        let mut pending = transaction();
        pending.settled_at = None;
        let profile = profile();
        let mut sums = engine::Balance::default();
        sums.paid.pending = Total::from_nanos(1_500_000_000);
        let mut values = vec![
            ("Profile", shown(Profile::from(&profile))),
            ("List_Profile", shown(List { items: vec![Profile::from(&profile)], next_cursor: Some("c".into()) })),
            ("Items_Profile", shown(Items { items: vec![Profile::from(&profile)] })),
            ("Transaction", shown(TransactionShown::from(&transaction()))),
            ("Transaction", shown(TransactionShown::from(&pending))),
            ("Settlement", shown(Settlement::from(&transaction()))),
            ("Problem", shown(Problem::malformed_at("x", "y").document())),
            ("Problem", shown(Problem::malformed("y").document())),
            ("Balances", shown(balances(&[(Currency::default(), sums)].into()))),
            (
                "ServerStatus",
                shown(StatusShown {
                    version: "1",
                    node_id: Shown(NodeId::from_bytes([1; 16])),
                    uptime_seconds: 1,
                    listen: &["127.0.0.1:7700".into()],
                    store: StoreShown { path: None, bytes: 1, agents: 1, transactions: 1, events: 1, last_error: None },
                    sinks: Sinks {
                        redis: SinkShown::of(&SinkStatus::default()),
                        postgres: SinkShown::of(&SinkStatus::default()),
                    },
                }),
            ),
        ];
        for body in [
            EventBody::Recorded(Arc::new(facts())),
            EventBody::Settled,
            EventBody::Cancelled { reason: None },
            EventBody::Disputed { reason: Some("r".into()), evidence: vec![] },
            EventBody::EvidenceAdded { evidence: vec!["e".into()] },
            EventBody::Resolved {
                outcome: ResolutionOutcome::Settled,
                note: None,
                decisions: vec![EventId::from_bytes([2; 16])],
            },
        ] {
            let event = Event {
                event_id: EventId::from_bytes([1; 16]),
                transaction_id: TransactionId::from_stored("t1"),
                facts: [0; 32],
                round: 0,
                node_id: NodeId::from_bytes([1; 16]),
                at: Timestamp::from_micros(1),
                body,
            };
            values.push(("Event", shown(EventShown::from(&event))));
        }
        for (schema, value) in values {
            assert_eq!(conforms(schema, &value), Ok(()), "{value:#}");
            let members = value.as_object().unwrap();
            if schema != "Balances" {
                for name in members.keys().filter(|name| *name != "field") {
                    let mut less = members.clone();
                    less.remove(name);
                    assert!(conforms(schema, &less.into()).is_err(), "{schema} without {name}");
                }
                let mut more = members.clone();
                more.insert("surplus".into(), json!(1));
                assert!(conforms(schema, &more.into()).is_err(), "{schema} with more");
            }
        }
    }

    #[test]
    fn bodies_are_described_as_they_are_read() {
        let registration = json!({"agent_id": "a", "name": "A", "capabilities": [], "cost_per_task": "1.5"});
        assert_eq!(conforms("Registration", &registration), Ok(()));
        let mut without_id = registration.clone();
        without_id.as_object_mut().unwrap().remove("agent_id");
        assert!(conforms("Registration", &without_id).is_err());
        assert_eq!(conforms("Replacement", &without_id), Ok(()));
        assert_eq!(conforms("AgentPatch", &json!({"billing_notes": null})), Ok(()));
        for bad in [json!({"name": null}), json!({"currency": "usd"}), json!({"capacity_per_hour": 0}), json!({"x": 1})]
        {
            assert!(conforms("AgentPatch", &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_operation_tells_its_problems_and_every_reference_resolves() {
        let root: Value = serde_json::from_str(DOCUMENT).unwrap();
        for (path, item) in root["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                for status in ["400", "403", "408", "431", "503"] {
                    let content = &operation["responses"][status]["content"][PROBLEM_JSON];
                    assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem", "{method} {path} {status}");
                }
            }
        }
        let text = DOCUMENT;
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(root["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
