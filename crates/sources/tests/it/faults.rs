//! Faults of a file: all at once, each with its position and path, and none with a value.

use std::path::Path;

use sources::{Secrets, Sources};

use crate::{fault, parse, source};

const MANY: &str = r#"sources:
  quakes:
    pull:
      url: ftp://example.com/s3cret
      every: soon
      timeout: 2h
      tiemout: 1s
      paging: {next: links/next, max_pages: 0}
      auth: {bearer_file: missing-token}
    event:
      id: [/id, x y]
      timestamp: {from: /t, unit: d, else: never}
      payload: 'def f: f; f'
    store:
      collection: orders
      time_series: {timeField: t}
      indexes: [{keys: {mag: 2}}]
  poll:
    push: {}
    event: {id: /id}
  system.x:
    push: {}
    event: {id: "${NO_SUCH_VARIABLE}"}
  orders:
    push: {}
    topic: a/b
    delete: true
    event: {timestamp: /t}
    schema: missing.json
    store: {keys: [a, a.b, _id]}
  orders:
    push: {}
colour: red
"#;

/// The start of each line behind the file.
const MANY_FAULTS: &[&str] = &[
    "4:12: sources.quakes.pull.url: should be a URL with http or https",
    "5:14: sources.quakes.pull.every: should be a duration such as 500ms, 10s, 5m, 2h or 1d",
    "6:16: sources.quakes.pull.timeout: should be a duration from 100ms to 5m",
    "7:7: sources.quakes.pull.tiemout: unknown field; known fields: kind, url, every, timeout, headers, auth, records, paging, wait",
    "8:22: sources.quakes.pull.paging.next: is not a JSON Pointer: it should be empty or begin with /",
    "8:45: sources.quakes.pull.paging.max_pages: should be a whole number from 1 to 1000",
    "9:27: sources.quakes.pull.auth.bearer_file: the file cannot be read: No such file or directory (os error 2)",
    "11:17: sources.quakes.event.id[1]: is neither a JSON Pointer nor a jq filter: the filter is wrong at character 3",
    "12:35: sources.quakes.event.timestamp.unit: should be s, ms, us or ns",
    "12:44: sources.quakes.event.timestamp.else: should be now or absent",
    "13:16: sources.quakes.event.payload: is not an allowed jq filter: def is not allowed",
    "16:7: sources.quakes.store.time_series: a time-series collection takes no unique index",
    "17:30: sources.quakes.store.indexes[0].keys.mag: should be 1, -1, hashed, text or 2dsphere",
    "18:3: sources.poll: poll is a reserved name",
    "21:3: sources.system.x: is not a name of a source: Source should not start with system.",
    "23:17: sources.system.x.event.id: the variable NO_SUCH_VARIABLE is not defined",
    "25:5: sources.orders: the collection is that of the source quakes too; each needs its own",
    "26:12: sources.orders.topic: is not a topic name",
    "27:13: sources.orders.delete: should be a map of fields and is a boolean",
    "28:12: sources.orders.event.id: this field is missing",
    "29:13: sources.orders.schema: the file cannot be read",
    "30:23: sources.orders.store.keys[1]: this field is part of another one",
    "30:28: sources.orders.store.keys[2]: _id is created by MongoDB; use event_id",
    "31:3: sources.orders: this name occurs twice",
    "33:1: colour: unknown field; known fields: sources",
];

#[test]
fn all_faults_of_a_file_are_reported_with_line_and_column() {
    let faults = parse(MANY).unwrap_err();
    let text = faults.to_string();
    let lines: Vec<&str> = text.lines().collect();
    for (line, expected) in lines.iter().zip(MANY_FAULTS) {
        let expected = format!("sources.yaml:{expected}");
        assert!(line.starts_with(&expected), "\n{line}\n{expected}\n\n{text}");
    }
    assert_eq!(lines.len(), MANY_FAULTS.len(), "{text}");
    assert!(!text.contains("s3cret"));
}

#[test]
fn two_sources_cannot_share_a_collection() {
    let text = "sources:\n  a: {push: {}, event: {id: /i}}\n  b: {push: {}, event: {id: /i}, store: {collection: a}}\n";
    let expected = "sources.yaml:3:54: sources.b.store.collection: the collection is that of the source a too; each needs its own";
    assert_eq!(parse(text).unwrap_err().to_string(), expected);
    let text = "sources:\n  b: {push: {}, event: {id: /i}, store: {collection: a}}\n  a: {push: {}, event: {id: /i}}\n";
    assert!(
        parse(text)
            .unwrap_err()
            .to_string()
            .starts_with("sources.yaml:3:6: sources.a: the collection is that of the source b")
    );
}

#[test]
fn a_source_needs_one_way_in() {
    assert!(
        fault("event: {id: /i}").starts_with("sources.s: should have `pull`, `push` or `envelope: true`")
    );
    assert!(fault("envelope: false").starts_with("sources.s: should have `pull`"));
    assert!(fault("envelope: true\nevent: {id: /i}").starts_with("sources.s.event: an event in an envelope"));
    let both = fault("push: {}\npull: {url: \"http://a/\"}\nevent: {id: /i}");
    assert!(both.starts_with("sources.s.push: a source has either `pull` or `push`"), "{both}");
    assert!(source("envelope: true").is_ok());
    assert!(source("envelope: true\npush: {}\nevent: {id: /i}").is_ok());
    assert!(source("push:\nevent: {id: /i}").is_ok());
}

const WRONG_KINDS: &[(&str, &str)] = &[
    ("push: []\nevent: {id: /i}", "sources.s.push: should be a map of fields and is a list"),
    ("push: {}\nevent: /i", "sources.s.event: should be a map of fields and is a text"),
    ("push: {}\nevent: {id: 7}", "sources.s.event.id: should be a text and is a number: write it in quotes"),
    ("push: {}\nevent: {id: ''}", "sources.s.event.id: should not be an empty text"),
    ("push: {}\nevent: {id: {from: [/a]}}", "sources.s.event.id.from: should be a text and is a list"),
    ("push: {}\nevent: {id: []}", "sources.s.event.id: should be a list of places and is empty"),
    (
        "push: {}\nevent: {id: {}}",
        "sources.s.event.id: should have one of the fields from, first, join, answer",
    ),
    ("push: {}\nevent: {id: {from: /a, first: [/b]}}", "sources.s.event.id: should have one of the fields"),
    ("push: {}\nevent: {id: {from: /a, with: x}}", "sources.s.event.id.with: `with` stands beside `join`"),
    ("push: {}\nevent: {id: [{else: uuid}, /a]}", "sources.s.event.id[0]: `else` should be the last"),
    ("push: {}\nevent: {id: [/a, [/b]]}", "sources.s.event.id[1]: should be a JSON Pointer such as /id"),
    ("push: {}\nevent: {id: {join: [/a, {}]}}", "sources.s.event.id.join[1].answer: this field is missing"),
    ("push: {}\nevent: {id: {from: /a, else: now}}", "sources.s.event.id.else: should be uuid or absent"),
    (
        "push: {}\nevent: {id: /i, timestamp: {}}",
        "sources.s.event.timestamp: should have one of the fields from",
    ),
    (
        "push: {}\nevent: {id: /i, timestamp: {from: /t, unit: s, zone: UTC}}",
        "sources.s.event.timestamp: `zone` stands",
    ),
    (
        "push: {}\nevent: {id: /i, timestamp: {from: /t, format: rfc3339, zone: UTC}}",
        "sources.s.event.timestamp: `zone`",
    ),
    (
        "push: {}\nevent: {id: /i, timestamp: {from: /t, format: dd.mm.yy}}",
        "sources.s.event.timestamp.format: should be rfc3339",
    ),
    (
        "push: {}\nevent: {id: /i, timestamp: {from: /t, zone: Europe/Berlin}}",
        "sources.s.event.timestamp.zone: should be UTC",
    ),
    (
        "push: {}\nevent: {id: /i, timestamp: [{else: now}, /t]}",
        "sources.s.event.timestamp[0]: `else` should be the last",
    ),
    ("envelope: 1", "sources.s.envelope: should be true or false and is a number"),
    ("envelope: yes", "sources.s.envelope: should be true or false and is a text"),
    ("envelope: true\ntopic: ''", "sources.s.topic: should not be an empty text"),
    (
        "envelope: true\nstore: {source_field: event_id}",
        "sources.s.store.source_field: is a field that Slipstream",
    ),
    (
        "envelope: true\nstore: {source_field: a.b}",
        "sources.s.store.source_field: should be a field at the top",
    ),
    (
        "envelope: true\nstore: {collection: system.a}",
        "sources.s.store.collection: is not a name of a collection",
    ),
    (
        "envelope: true\nstore: {keys: []}",
        "sources.s.store.keys: should be a list of fields such as [event_id] and is empty",
    ),
    ("envelope: true\nstore: {keys: [$a]}", "sources.s.store.keys[0]: should be a field of a document"),
    (
        "envelope: true\nstore: {indexes: [{keys: {}}]}",
        "sources.s.store.indexes[0].keys: should have 1 to 32 fields",
    ),
    ("envelope: true\nstore: {indexes: [{}]}", "sources.s.store.indexes[0].keys: this field is missing"),
    (
        "envelope: true\nstore: {indexes: [{keys: {a: 1}}, {keys: {a: 1}, unique: true}]}",
        "sources.s.store.indexes[1]: this index occurs twice",
    ),
    (
        "envelope: true\nstore: {indexes: [{keys: {a: text}, unique: true}]}",
        "sources.s.store.indexes[0]: only an index with",
    ),
    (
        "envelope: true\nstore: {indexes: [{keys: {event_id: 1}}]}",
        "sources.s.store: UPSERT_KEYS already has a unique index",
    ),
    (
        "envelope: true\nstore: {keys: [a, b], indexes: [{keys: {a: 1, b: 1}}]}",
        "sources.s.store: `keys` already",
    ),
    ("envelope: true\nstore: {timeseries: {}}", "sources.s.store.timeseries: a time-series collection"),
    ("envelope: true\nstore: {tombstones: true}", "sources.s.store.tombstones: unknown field"),
];

/// The faults of a file with variables.
fn faults_with(text: &str, variables: &[(&str, &str)]) -> String {
    let variable =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let sources = Sources::parse("s.yaml", text, Path::new(""), &variable);
    sources.map_or_else(|faults| faults.to_string(), |_| String::new())
}

#[test]
fn a_topic_that_is_a_dead_letter_topic_is_a_fault_with_its_place() {
    let own = "sources:\n  a: {envelope: true, topic: a.raw}\n  b: {envelope: true, topic: a.raw.dlq}\n";
    let of_a = "s.yaml:3:30: sources.b.topic: is the dead-letter topic of a.raw; choose another name";
    assert_eq!(faults_with(own, &[]), of_a);
    assert_eq!(faults_with(own, &[("DEAD_LETTER_TOPIC", "letters")]), "");
    assert_eq!(faults_with(own, &[("DEAD_LETTER_TOPIC", " ")]), of_a);
    let shared = faults_with(own, &[("DEAD_LETTER_TOPIC", "a.raw")]);
    assert!(shared.starts_with("s.yaml:2:30: sources.a.topic: is the dead-letter topic of "), "{shared}");
    let of_default = "sources:\n  a: {envelope: true, topic: events.raw.dlq}\n";
    assert!(faults_with(of_default, &[]).contains("is the dead-letter topic of events.raw"));
    assert_eq!(faults_with(of_default, &[("KAFKA_TOPIC", "other.raw")]), "");
    let second = faults_with(of_default, &[("KAFKA_TOPIC", "other.raw, events.raw")]);
    assert!(second.contains("is the dead-letter topic of events.raw"), "{second}");
}

#[test]
fn the_name_adsbdb_is_that_of_the_built_in_client() {
    let message = "s.yaml:2:3: sources.adsbdb: the name is reserved for a source with `pull: {kind: adsbdb}`";
    for fields in ["push: {}, event: {id: /a}", "envelope: true", "pull: {url: 'http://a'}, event: {id: /a}"]
    {
        assert_eq!(faults_with(&format!("sources:\n  adsbdb: {{{fields}}}\n"), &[]), message, "{fields}");
    }
    assert_eq!(faults_with("sources:\n  adsbdb: {pull: {kind: adsbdb}}\n", &[]), "");
}

#[test]
fn an_index_is_compared_with_upsert_keys_where_the_source_has_no_keys() {
    let file = |fields: &str| {
        format!("sources:\n  a: {{envelope: true, store: {{indexes: [{{keys: {{{fields}}}}}]}}}}\n")
    };
    let keys = [("UPSERT_KEYS", "no, line")];
    let found = faults_with(&file("no: 1, line: 1"), &keys);
    assert!(found.contains("sources.a.store: UPSERT_KEYS already has a unique index"), "{found}");
    assert_eq!(faults_with(&file("event_id: 1"), &keys), "");
    assert_eq!(faults_with(&file("line: 1, no: 1"), &keys), "");
}

#[test]
fn a_field_of_the_wrong_kind_is_reported_with_both_kinds() {
    for (fields, expected) in WRONG_KINDS {
        let found = fault(fields);
        assert!(found.starts_with(expected), "{fields}\n{found}");
    }
}

const PULLS: &[(&str, &str)] = &[
    ("every: 1s", "sources.s.pull.url: this field is missing"),
    ("url: /a", "sources.s.pull.url: should be a URL such as"),
    ("url: \"http://u:p@a/\"", "sources.s.pull.url: should have no user and no password"),
    ("url: \"http://a/#b\"", "sources.s.pull.url: should have no # part"),
    ("kind: soap, url: \"http://a/\"", "sources.s.pull.kind: should be http or adsbdb"),
    ("url: \"http://a/\", every: 1ms", "sources.s.pull.every: should be a duration from 100ms to 365d"),
    (
        "url: \"http://a/\", every: 60",
        "sources.s.pull.every: should be a duration such as 500ms, 10s, 5m, 2h or 1d and is a number",
    ),
    (
        "url: \"http://a/\", headers: {Host: b}",
        "sources.s.pull.headers.Host: the client sets this header itself",
    ),
    ("url: \"http://a/\", headers: {a b: c}", "sources.s.pull.headers.a b: should be the name of a header"),
    ("url: \"http://a/\", headers: {A: b, a: c}", "sources.s.pull.headers.a: this header occurs twice"),
    (
        "url: \"http://a/\", headers: {A: \"b\\r\\nc: d\"}",
        "sources.s.pull.headers.A: should have only visible",
    ),
    (
        "url: \"http://a/\", auth: {}",
        "sources.s.pull.auth: should have one of the fields bearer_file, basic, header",
    ),
    (
        "url: \"http://a/\", auth: {basic: {user: u}}",
        "sources.s.pull.auth.basic.password_file: this field is missing",
    ),
    ("url: \"http://a/\", auth: {bearer_file: x, basic: {}}", "sources.s.pull.auth: should have one of"),
    ("url: \"http://a/\", records: a", "sources.s.pull.records: is not a JSON Pointer"),
    ("url: \"http://a/\", records: {list: /a, map: /b}", "sources.s.pull.records: should have one of"),
    (
        "url: \"http://a/\", paging: {}",
        "sources.s.pull.paging: should have one of the fields next, link_header, cursor_header, offset",
    ),
    ("url: \"http://a/\", paging: {link_header: false}", "sources.s.pull.paging.link_header: should be true"),
    ("url: \"http://a/\", paging: {cursor_header: X}", "sources.s.pull.paging.param: this field is missing"),
    (
        "url: \"http://a/\", paging: {next: /n, param: x}",
        "sources.s.pull.paging.param: `param` stands beside",
    ),
    (
        "url: \"http://a/\", paging: {offset: {param: o}}",
        "sources.s.pull.paging.offset.size: this field is missing",
    ),
    (
        "url: \"http://a/\", paging: {next: /n, max_pages: 1001}",
        "sources.s.pull.paging.max_pages: should be a whole number from 1 to 1000",
    ),
    ("url: \"http://a/\", wait: [a b]", "sources.s.pull.wait[0]: should be the name of a header"),
];

#[test]
fn faults_of_a_pull_are_reported() {
    let pull = |fields: &str| fault(&format!("pull: {{{fields}}}\nevent: {{id: /i}}"));
    for (fields, expected) in PULLS {
        let found = pull(fields);
        assert!(found.starts_with(expected), "{fields}\n{found}");
    }
    let event = fault("pull: {kind: adsbdb}\nevent: {id: /i}");
    assert!(event.starts_with("sources.s.event: kind adsbdb has its own mapping"), "{event}");
    let url = fault("pull: {kind: adsbdb, url: \"http://a/\"}");
    assert!(url.starts_with("sources.s.pull.url: unknown field; known fields: kind, every"), "{url}");
}

#[test]
fn a_file_without_sources_is_faulty() {
    for (text, expected) in [
        ("", "sources.yaml:1:1: should be a map of fields and is empty"),
        ("sources:\n", "sources.yaml:1:8: sources: should be a map of sources and is empty"),
        ("sources: {}\n", "sources.yaml:1:10: sources: should have at least one source"),
        ("{}\n", "sources.yaml:1:1: sources: this field is missing"),
        ("sources: []\n", "sources.yaml:1:10: sources: should be a map of sources and is a list"),
        ("sources: {a: 1}\n", "sources.yaml:1:14: sources.a: should be a map of fields and is a number"),
    ] {
        let found = parse(text).unwrap_err().to_string();
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
    let many: String = (0..257).map(|number| format!("  s{number}: {{envelope: true}}\n")).collect();
    assert!(parse(&format!("sources:\n{many}")).unwrap_err().to_string().contains("at most 256 sources"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let load = |path: &Path| Sources::load(path, &[], Secrets::Read).unwrap_err().to_string();
    assert!(load(Path::new("no-such-file.yaml")).starts_with("no-such-file.yaml: cannot be read: "));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    std::fs::write(&path, b"sources: \xff").unwrap();
    assert!(load(&path).contains("cannot be read"));
    assert!(load(folder.path()).contains("cannot be read"));
    std::fs::write(&path, vec![b'#'; 5 * 1024 * 1024]).unwrap();
    assert!(load(&path).contains("has more than 4194304 bytes"));
}

#[test]
fn hostile_yaml_ends_with_an_error() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{items}]\n");
    }
    for text in [bomb, "[".repeat(20_000), "- ".repeat(20_000), "a: &a [*a]".into(), "{".repeat(1000)] {
        let found = parse(&text).unwrap_err();
        assert_eq!(found.count(), 1);
        assert!(found.to_string().contains("the YAML cannot be read"), "{found}");
    }
}
