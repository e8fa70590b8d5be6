//! Every field of every body: what it is refused for.

use crate::common::http::Request;
use crate::{Row, invalid, malformed};

/// A kind of field: one good value, what is of a wrong type (400) and what breaks a rule (422).
struct Kind {
    good: &'static str,
    wrong: &'static [&'static str],
    broken: fn() -> Vec<String>,
    nullable: bool,
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn quoted(character: &str, count: usize) -> String {
    format!("\"{}\"", character.repeat(count))
}

const NO_TEXT: &[&str] = &["5", "true", "[]", "{}", "[\"x\"]"];
const NO_NUMBER: &[&str] = &["\"1\"", "true", "[]", "{}", "\"\""];
const NO_WHOLE: &[&str] = &["\"1\"", "true", "[]", "{}", "1.5", "1e-1"];

const AGENT_ID: Kind = Kind {
    good: "\"new\"",
    wrong: NO_TEXT,
    broken: || {
        [texts(&["\"\"", "\"a b\"", "\"a.b\"", "\"é\"", "\"a/b\"", "\"a\\u0000\"", "\" a\""]), vec![quoted("x", 256)]]
            .concat()
    },
    nullable: false,
};
const TRANSACTION_ID: Kind = Kind {
    good: "\"new\"",
    wrong: NO_TEXT,
    broken: || [texts(&["\"\"", "\"a b\"", "\"a.b\"", "\"é\""]), vec![quoted("x", 33)]].concat(),
    nullable: false,
};
const NAME: Kind =
    Kind { good: "\"N\"", wrong: NO_TEXT, broken: || vec![quoted("", 0), quoted("é", 256)], nullable: false };
const CAPABILITY: Kind = Kind {
    good: "\"python\"",
    wrong: NO_TEXT,
    broken: || {
        [texts(&["\"\"", "\"  \"", "\"a\\nb\"", "\"a\\u0000\"", "\"\\u007fx\""]), vec![quoted("x", 256)]].concat()
    },
    nullable: false,
};
const CAPABILITIES: Kind = Kind {
    good: "[\"python\"]",
    wrong: &["\"python\"", "5", "{}", "true"],
    broken: || [texts(&["[\"\"]", "[\"ok\",\" \"]", "[\"a\\tb\"]"]), vec![format!("[{}]", quoted("x", 256))]].concat(),
    nullable: false,
};
const AMOUNT_BROKEN: &[&str] = &[
    "1234567890123456789",
    "\"1234567890123456789\"",
    "0.1234567891",
    "\"0.1234567891\"",
    "1e18",
    "1e-10",
    "1e400",
    "1e-400",
    "\"abc\"",
    "\"\"",
    "\" 1\"",
    "\"1 \"",
    "\"+1\"",
    "\".5\"",
    "\"1.\"",
    "\"01\"",
    "\"0x1\"",
    "\"1_000\"",
    "\"1,5\"",
    "\"NaN\"",
    "\"Infinity\"",
    "\"1e\"",
    "\"--1\"",
    "\"１\"",
    "-1",
    "\"-0.01\"",
    "-1e-9",
];
const NO_DECIMAL: &[&str] = &["true", "[]", "{}", "[1]"];
const COST: Kind = Kind { good: "\"1.5\"", wrong: NO_DECIMAL, broken: || texts(AMOUNT_BROKEN), nullable: false };
const AMOUNT: Kind = Kind {
    good: "1.5",
    wrong: NO_DECIMAL,
    broken: || [texts(AMOUNT_BROKEN), texts(&["0", "\"0\"", "0.0", "0e5", "-0"])].concat(),
    nullable: false,
};
const CURRENCY: Kind = Kind {
    good: "\"EUR\"",
    wrong: NO_TEXT,
    broken: || texts(&["\"\"", "\"US\"", "\"usd\"", "\"US$\"", "\" USD\"", "\"ABCDEFGHIJK\""]),
    nullable: false,
};
const CAPACITY: Kind = Kind {
    good: "30",
    wrong: NO_WHOLE,
    broken: || texts(&["0", "-1", "4294967296", "1e30", "99999999999999999999999999999999999999999999"]),
    nullable: false,
};
const TTL: Kind = Kind {
    good: "60",
    wrong: NO_WHOLE,
    broken: || texts(&["0", "-1", "2592001", "1e300", "99999999999999999999999999999999999999999999"]),
    nullable: false,
};
const AVAILABILITY: Kind = Kind {
    good: "\"busy\"",
    wrong: NO_TEXT,
    broken: || texts(&["\"\"", "\"Online\"", "\"away\"", "\" online\""]),
    nullable: false,
};
const NOTES: Kind = Kind {
    good: "\"net 30\"",
    wrong: NO_TEXT,
    broken: || vec![quoted("x", 4_097), quoted("é", 2_049)],
    nullable: true,
};
const OBJECT: Kind = Kind {
    good: "{\"k\":1}",
    wrong: &["\"{}\"", "5", "[]", "true", "{\"k\":1,\"k\":2}", "{\"a\":{\"k\":1,\"k\":2}}"],
    broken: || {
        [texts(&["{\"k\":1e400}", "{\"k\":1e-16384}"]), vec![format!("{{\"k\":{}}}", quoted("x", 64 * 1_024))]].concat()
    },
    nullable: false,
};
const TRUTH: Kind =
    Kind { good: "true", wrong: &["1", "0", "\"true\"", "[]", "{}"], broken: Vec::new, nullable: false };
const WEIGHT: Kind =
    Kind { good: "0.5", wrong: NO_NUMBER, broken: || texts(&["0", "-1", "1e999", "-0.0"]), nullable: false };
const DELTA: Kind = Kind { good: "-1", wrong: NO_NUMBER, broken: || texts(&["1e999", "-1e999"]), nullable: false };
const TEXT: Kind = Kind { good: "\"why\"", wrong: NO_TEXT, broken: || vec![quoted("x", 4_097)], nullable: false };
const PIECES_WRONG: &[&str] = &["\"log\"", "5", "{}", "true"];
const PIECES: Kind = Kind { good: "[\"log\"]", wrong: PIECES_WRONG, broken: broken_pieces, nullable: false };
const SOME_PIECES: Kind = Kind {
    good: "[\"log\"]",
    wrong: PIECES_WRONG,
    broken: || [broken_pieces(), texts(&["[]"])].concat(),
    nullable: false,
};
const OUTCOME: Kind = Kind {
    good: "\"settled\"",
    wrong: NO_TEXT,
    broken: || texts(&["\"\"", "\"pending\"", "\"disputed\"", "\"Settled\""]),
    nullable: false,
};

fn broken_pieces() -> Vec<String> {
    let many: Vec<String> = (0..257).map(|number| format!("\"{number}\"")).collect();
    vec![format!("[{}]", quoted("x", 4_097)), format!("[{}]", many.join(","))]
}

/// A body: its fields, each with its name, its kind and whether it must be there.
type Body = (&'static str, &'static str, &'static [(&'static str, Kind, bool)]);

const BODIES: [Body; 11] = [
    (
        "POST",
        "/v1/agents",
        &[
            ("agent_id", AGENT_ID, true),
            ("name", NAME, true),
            ("capabilities", CAPABILITIES, true),
            ("cost_per_task", COST, true),
            ("currency", CURRENCY, false),
            ("capacity_per_hour", CAPACITY, false),
            ("availability", AVAILABILITY, false),
            ("billing_notes", NOTES, false),
            ("metadata", OBJECT, false),
            ("ttl_seconds", TTL, false),
        ],
    ),
    (
        "PUT",
        "/v1/agents/new",
        &[
            ("agent_id", AGENT_ID, false),
            ("name", NAME, true),
            ("capabilities", CAPABILITIES, true),
            ("cost_per_task", COST, true),
            ("currency", CURRENCY, false),
            ("capacity_per_hour", CAPACITY, false),
            ("availability", AVAILABILITY, false),
            ("billing_notes", NOTES, false),
            ("metadata", OBJECT, false),
            ("ttl_seconds", TTL, false),
        ],
    ),
    (
        "PATCH",
        "/v1/agents/thon",
        &[
            ("name", NAME, false),
            ("capabilities", CAPABILITIES, false),
            ("cost_per_task", COST, false),
            ("currency", CURRENCY, false),
            ("capacity_per_hour", CAPACITY, false),
            ("availability", AVAILABILITY, false),
            ("billing_notes", NOTES, false),
            ("metadata", OBJECT, false),
            ("ttl_seconds", TTL, false),
        ],
    ),
    ("PATCH", "/v1/agents/thon", &[("status", AVAILABILITY, false)]),
    ("POST", "/v1/agents/thon/outcomes", &[("success", TRUTH, true), ("weight", WEIGHT, false)]),
    ("POST", "/v1/agents/thon/reputation", &[("delta", DELTA, true)]),
    (
        "POST",
        "/v1/transactions",
        &[
            ("payer_agent", AGENT_ID, true),
            ("provider_agent", AGENT_ID, true),
            ("capability", CAPABILITY, true),
            ("amount", AMOUNT, true),
            ("currency", CURRENCY, false),
            ("context", OBJECT, false),
            ("transaction_id", TRANSACTION_ID, false),
        ],
    ),
    ("POST", "/v1/transactions/t1/cancel", &[("reason", TEXT, false)]),
    ("POST", "/v1/transactions/t1/dispute", &[("evidence", PIECES, false), ("reason", TEXT, false)]),
    ("POST", "/v1/transactions/disputed/evidence", &[("evidence", SOME_PIECES, true)]),
    ("POST", "/v1/transactions/disputed/resolve", &[("outcome", OUTCOME, true), ("note", TEXT, false)]),
];

/// The rows of every field.
pub fn field_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (method, target, fields) in &BODIES {
        let request = |members: &[(&str, &str)]| {
            let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            Request::new(method, *target).text("application/json", format!("{{{}}}", members.join(",")))
        };
        for (name, kind, required) in *fields {
            let others: Vec<(&str, &str)> =
                fields.iter().filter(|(other, ..)| other != name).map(|(other, kind, _)| (*other, kind.good)).collect();
            let having = |value: &str| request(&[&others[..], &[(name, value)]].concat());
            for value in kind.wrong {
                rows.push(malformed(having(value), name));
            }
            for value in (kind.broken)() {
                rows.push(invalid(having(&value), name));
            }
            if !kind.nullable {
                rows.push(malformed(having("null"), name));
            }
            if kind.good.starts_with('[') {
                let second = format!("{name}[1]");
                for value in ["5", "null", "[]", "{}"] {
                    rows.push(malformed(having(&format!("[\"ok\",{value}]")), &second));
                }
            }
            let twice = [&others[..], &[(name, kind.good), (name, kind.good)]].concat();
            rows.push(malformed(request(&twice), name));
            if *required {
                rows.push(malformed(request(&others), name));
            }
        }
        // Both names of one thing are one too many.
        if *method == "PATCH" {
            rows.push(malformed(request(&[("availability", "\"busy\""), ("status", "\"busy\"")]), "status"));
        }
    }
    rows
}
