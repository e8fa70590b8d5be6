//! Schemas of the small types that many bodies share: ids, times, amounts. They exist in the OpenAPI document only.

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat,
    SchemaType, Type,
};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::AvailabilityStatus;
use crate::domain::TransactionStatus;

macro_rules! schema {
    ($(#[$doc:meta])* $name:ident = $schema:expr) => {
        $(#[$doc])*
        pub(crate) enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                RefOr::T(Schema::from($schema))
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    };
}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

fn uuid(description: &str) -> ObjectBuilder {
    text(description)
        .format(Some(SchemaFormat::Custom("uuid".to_owned())))
        .pattern(Some("^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"))
}

fn decimal(description: &str) -> OneOfBuilder {
    let more = "Strings may have an exponent too. Numbers are read by the digits that they are written with.";
    OneOfBuilder::new().description(Some(format!("{description} {more}")))
}

fn number() -> ObjectBuilder {
    // The largest that is taken has no double of its own.
    ObjectBuilder::new().schema_type(Type::Number).exclusive_maximum(Some(1_000_000_000_000_000_000_f64))
}

fn cursor(pattern: &str) -> ObjectBuilder {
    text("`next_cursor` of the page before, as it is; what it says may change.").pattern(Some(pattern))
}

fn words<'a>(description: &str, words: impl IntoIterator<Item = &'a str>) -> ObjectBuilder {
    text(description).enum_values(Some(words))
}

schema! {
    /// An agent's id.
    AgentId = text("An agent's id.").pattern(Some("^[A-Za-z0-9_-]{1,255}$")).build()
}
schema! {
    /// A transaction's id.
    TransactionId = text("A transaction's id; minted ones are UUIDv7 as 32 hex digits.")
        .pattern(Some("^[A-Za-z0-9_-]{1,32}$")).build()
}
schema! {
    /// A UUID.
    NodeId = uuid("A node's id: a UUID.").build()
}
schema! {
    /// A UUID.
    EventId = uuid("An event's id: a UUID.").build()
}
schema! {
    /// What an agent can do.
    Capability = text("What an agent can do; trimmed and lower-cased when it is read, no control characters.")
        .pattern(Some(r"^\s*[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?\s*$"))
        .max_length(Some(255)).build()
}
schema! {
    /// A currency.
    Currency = text("A currency or unit of account.").pattern(Some("^[A-Z0-9]{3,10}$")).build()
}
schema! {
    /// A time as it is written.
    Time = text("A time: RFC 3339, UTC, microseconds.")
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .pattern(Some(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}\+00:00$")).build()
}
schema! {
    /// A time as it is read.
    TimeInput = text("A time: RFC 3339 with any offset or `Z`; a space is read as the `+` that it was.")
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).build()
}
schema! {
    /// An amount as it is written.
    Money = text("An exact decimal: no exponent, no needless zeros.")
        .pattern(Some(r"^-?(0|[1-9]\d*)(\.\d*[1-9])?$")).build()
}
schema! {
    /// A price as it is read.
    CostInput = decimal("A price: an exact decimal of at most 18 integer and 9 fraction digits, read by its digits.")
        .item(ObjectBuilder::new().schema_type(Type::String).pattern(Some(r"^(0|[1-9]\d{0,17})(\.\d{1,9})?$")))
        .item(number().minimum(Some(0)))
        .build()
}
schema! {
    /// An amount as it is read.
    AmountInput = decimal("An amount above 0: an exact decimal of at most 18 integer and 9 fraction digits.")
        .item(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .pattern(Some(r"^([1-9]\d{0,17}(\.\d{1,9})?|0\.(\d{0,8}[1-9]|\d{0,7}[1-9]\d|\d{0,6}[1-9]\d{2}))$")),
        )
        .item(number().exclusive_minimum(Some(0)))
        .build()
}
schema! {
    /// A batch. Whatever an item is, the batch is answered, and the item has an answer of its own.
    Batch = ArrayBuilder::new()
        .description(Some("Transactions to record; what is none gets a 400 of its own."))
        .items(
            AnyOfBuilder::new()
                .item(utoipa::openapi::Ref::from_schema_name("NewTransaction"))
                .item(ObjectBuilder::new().schema_type(SchemaType::AnyValue)),
        )
        .max_items(Some(10_000))
        .build()
}
schema! {
    /// The value of a header.
    IdempotencyKey = text("1 to 255 printable ASCII characters; blanks around them do not count.")
        .pattern(Some(r"^[!-~]([ -~]{0,253}[!-~])?$")).build()
}
schema! {
    /// The value of a header.
    EntityTags = text("`*` or a list of entity tags.")
        .pattern(Some(r#"^(\*|(W/)?"[!#-~]*"(, *(W/)?"[!#-~]*")*)$"#)).build()
}
schema! {
    /// Where a page of transactions begins.
    TransactionCursor = cursor(r"^t1\.(0|[1-9]\d{0,15})\.[A-Za-z0-9_-]{1,32}$").build()
}
schema! {
    /// Where a page of agents begins.
    AgentCursor = cursor(
        r"^a1\.(id|score|cost|availability)\.[0-9a-f]{1,16}\.[0-9a-f]{1,32}\.[a-z]+\.[1-9][0-9]*\.[A-Za-z0-9_-]{1,255}$",
    ).build()
}
schema! {
    /// Where a page of parked entries begins.
    ParkedCursor = cursor(r"^p1\.([sc]\.(0|[1-9]\d{0,17})|a\.[A-Za-z0-9_-]{1,255})$").build()
}
schema! {
    /// Whether an agent takes work.
    Availability = words("Whether an agent takes work.", AvailabilityStatus::ALL.map(AvailabilityStatus::as_str)).build()
}
schema! {
    /// Where a transaction stands.
    Status = words("Where a transaction stands.", TransactionStatus::ALL.map(TransactionStatus::as_str)).build()
}
schema! {
    /// Somebody's own JSON object.
    AnyObject = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("A JSON object of at most 64 KiB, kept as it is; no key twice in one object, no number beyond a double's range or of more than 16383 digits after the decimal point."))
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(true)))
        .build()
}
schema! {
    /// Up to 4 KiB of text.
    Text = text("Up to 4 KiB of UTF-8, without U+0000.").max_length(Some(4096)).pattern(Some(r"^[^\u0000]*$")).build()
}
schema! {
    /// An empty object.
    Nothing = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Nothing, or an empty object."))
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
        .build()
}
schema! {
    /// How many live agents have each capability.
    CapabilityCounts = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Capability to number of live agents that have it."))
        .additional_properties(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1))))
        .build()
}
schema! {
    /// Sums by currency.
    Balances = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Currency to its sums; empty for an agent without transactions."))
        .additional_properties(Some(utoipa::openapi::Ref::from_schema_name("Balance")))
        .build()
}
