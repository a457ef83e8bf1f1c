//! What the fields of a file mean: secrets, variables, defaults.

use std::time::Duration;

use events::{Millis, Unit};
use sources::{
    Answer, Auth, Context, IdCandidate, Index, IndexKind, NextPage, Place, Records, Secrets, Sources,
    TimeForm, Upstream,
};

use crate::source;

fn valid(fields: &str) -> Sources {
    source(fields).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn absent_fields_have_defaults() {
    let sources = valid("pull: {url: \"https://example.com/a\"}\nevent: {id: /i}");
    let source = sources.get("s").unwrap();
    let pull = source.pull.as_ref().unwrap();
    let Upstream::Http(api) = &pull.upstream else { panic!() };
    assert_eq!((pull.every, api.timeout), (Duration::from_secs(60), Duration::from_secs(10)));
    assert!(matches!(&api.records, Records::One(pointer) if pointer.as_str().is_empty()));
    assert_eq!((api.auth.as_ref(), api.paging.as_ref(), api.wait.len()), (None, None, 0));
    assert_eq!((source.topic.as_ref(), source.store.keys.as_ref()), (None, None));
    assert!(source.event.as_ref().unwrap().timestamp.else_now);
    let now = Millis::new(5).unwrap();
    assert_eq!(source.extract(r#"{"i":1}"#, Context::default(), now).unwrap().timestamp, now);
    assert!(sources.get("other").is_none());
}

const ALL_FIELDS: &str = r#"
sources:
  a:
    description: A
    pull:
      url: https://${HOST}/a?key=${TOKEN}&b=$$c
      every: 500ms
      timeout: 2m
      headers: {X-One: "${TOKEN}"}
      auth: {bearer_file: token}
      records: {map: /a}
      paging: {next: /next}
      wait: [X-Wait, X-Other]
    topic: a.raw
    event: {id: {first: [/a, $key], else: uuid}, timestamp: {from: /t, unit: us}, payload: /p}
    store: {collection: all, keys: [a, b.c], source_field: source, indexes: [{keys: {x: -1, y: 2dsphere}}, {keys: {z: 1}, unique: true}]}
  b:
    pull:
      url: http://example.com
      auth: {basic: {user: u, password_file: token}}
      records: /items
      paging: {offset: {param: offset, size: 100, size_param: limit}, max_pages: "${PAGES}"}
    event: {id: {else: uuid}, timestamp: {answer: /t}}
  c:
    pull:
      url: http://example.com
      auth: {header: {name: X-Key, value_file: token}}
      paging: {link_header: true}
    event: {id: {answer: /i}, timestamp: {else: now}}
"#;

#[test]
fn all_fields_are_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "s3cret\n").unwrap();
    let variable = |name: &str| match name {
        "HOST" => Some("example.com".to_owned()),
        "TOKEN" => Some("s3cret".to_owned()),
        "PAGES" => Some("7".to_owned()),
        _ => None,
    };
    let sources =
        Sources::parse("f", ALL_FIELDS, folder.path(), &variable).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(!format!("{sources:?}").contains("s3cret"), "{sources:?}");
    let http = |name: &str| match &sources.get(name).unwrap().pull.as_ref().unwrap().upstream {
        Upstream::Http(api) => api,
        Upstream::Adsbdb => panic!(),
    };
    let a = sources.get("a").unwrap();
    let api = http("a");
    assert_eq!(api.url.as_str(), "https://example.com/a?key=s3cret&b=$c");
    assert_eq!(a.pull.as_ref().unwrap().every, Duration::from_millis(500));
    assert_eq!(
        api.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect::<Vec<_>>(),
        [("x-one", "s3cret")]
    );
    assert!(matches!(&api.auth, Some(Auth::Bearer(token)) if token.expose() == "s3cret"));
    assert!(matches!(&api.records, Records::Map(pointer) if pointer.as_str() == "/a"));
    assert_eq!(api.wait, ["x-wait", "x-other"]);
    let mapping = a.event.as_ref().unwrap();
    assert!(mapping.id.else_uuid);
    assert!(matches!(mapping.id.candidates[1], IdCandidate::One(Place::Key)));
    assert_eq!(mapping.timestamp.form, TimeForm::Epoch(Unit::Micros));
    assert_eq!(a.store.keys.as_deref().unwrap(), ["a", "b.c"]);
    let keys = vec![("x".to_owned(), IndexKind::Descending), ("y".to_owned(), IndexKind::Sphere)];
    assert_eq!(a.store.indexes[0], Index { keys, unique: false });
    assert!(a.store.indexes[1].unique);
    let paging = http("b").paging.as_ref().unwrap();
    let size_param = Some("limit".to_owned());
    assert_eq!(paging.max_pages, 7);
    assert_eq!(paging.next, NextPage::Offset { param: "offset".into(), size: 100, size_param });
    assert!(matches!(&http("b").auth, Some(Auth::Basic { user, .. }) if user == "u"));
    assert!(matches!(&http("c").auth, Some(Auth::Header { name, .. }) if name == "x-key"));
    let b = sources.get("b").unwrap();
    let answer = Answer::new(r#"{"t":5}"#);
    let context = Context { answer: Some(&answer), key: None };
    let extracted = b.extract("{}", context, Millis::new(0).unwrap()).unwrap();
    assert!(extracted.id_generated);
    assert_eq!(extracted.timestamp.get(), 5000);
}

#[test]
fn a_process_that_fetches_nothing_needs_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.yaml");
    let text =
        "sources:\n  a: {pull: {url: 'http://${HOST}', auth: {bearer_file: token}}, event: {id: /i}}\n";
    std::fs::write(&path, text).unwrap();
    let environment = [("HOST".to_owned(), " h ".to_owned())];
    let url = |sources: &Sources| {
        let pull = sources.get("a").unwrap().pull.as_ref().unwrap();
        let Upstream::Http(api) = &pull.upstream else { panic!("another upstream") };
        api.url.to_string()
    };
    let sources = Sources::load(&path, &environment, Secrets::Skip).unwrap();
    assert_eq!(url(&sources), "http://h/");
    let faults = Sources::load(&path, &environment, Secrets::Read).unwrap_err().to_string();
    assert!(faults.contains("sources.a.pull.auth.bearer_file: the file cannot be read"), "{faults}");
    std::fs::write(folder.path().join("token"), "t0ken\n").unwrap();
    let with_secret = Sources::load(&path, &environment, Secrets::Read).unwrap();
    assert_ne!(with_secret, sources, "the secret is read");
    std::fs::write(&path, text.replace("token", "''")).unwrap();
    let faults = Sources::load(&path, &environment, Secrets::Skip).unwrap_err().to_string();
    assert!(faults.contains("bearer_file: should not be an empty text"), "{faults}");
}

#[test]
fn secrets_that_cannot_be_used_are_faults_without_their_text() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("empty"), " \n").unwrap();
    std::fs::write(folder.path().join("lines"), "s3cret\ns3cret\n").unwrap();
    for (file, reason) in
        [("empty", "is empty"), ("lines", "one line"), ("absent", "cannot be read"), (".", "cannot be read")]
    {
        let text = format!(
            "sources: {{a: {{pull: {{url: \"http://a\", auth: {{bearer_file: {file}}}}}, event: {{id: /i}}}}}}"
        );
        let faults = Sources::parse("f", &text, folder.path(), &|_| None).unwrap_err().to_string();
        assert!(faults.contains("auth.bearer_file: ") && faults.contains(reason), "{faults}");
        assert!(!faults.contains("s3cret"));
    }
}

#[test]
fn all_reasons_of_a_faulty_record_are_returned() {
    let sources = source("push: {}\nevent: {id: /i, timestamp: /t, payload: .a.b}").unwrap();
    let record = r#"{"i":true,"a":1}"#;
    let fault =
        sources.get("s").unwrap().extract(record, Context::default(), Millis::new(0).unwrap()).unwrap_err();
    let fields: Vec<&str> = fault.reasons.iter().map(|(field, _)| *field).collect();
    assert_eq!(fields, ["id", "timestamp", "payload"]);
    assert!(
        fault.to_string().starts_with("id: /i should be a string or a number and is boolean; timestamp: ")
    );
    let sources = source("envelope: true").unwrap();
    assert!(sources.get("s").unwrap().extract("{}", Context::default(), Millis::new(0).unwrap()).is_err());
}

#[test]
fn all_faults_of_a_schema_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.json"), r#"{"required":"a","properties":{"a":{"type":5}}}"#)
        .unwrap();
    let text = "sources:\n  a: {push: {}, event: {id: /i}, schema: s.json}\n";
    let faults = Sources::parse("f", text, folder.path(), &|_| None).unwrap_err();
    assert_eq!(faults.count(), 2, "{faults}");
    for (fault, path) in faults.iter().zip(["/properties/a/type", "/required"]) {
        assert_eq!((fault.path.as_str(), fault.at.line, fault.at.column), ("sources.a.schema", 2, 42));
        assert!(fault.message.contains(path), "{faults}");
    }
}

#[test]
fn sources_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let sources = shared(source("push: {}\nevent: {id: .i}").unwrap());
    assert!(sources.get("s").is_some());
    _ = shared(Answer::new("{}"));
}

#[test]
fn a_byte_order_mark_and_line_ends_of_windows_are_read() {
    let text = "\u{feff}sources:\r\n  a:\r\n    push: {}\r\n    event: {id: /i, timestamp: x y}\r\n";
    let faults = crate::parse(text).unwrap_err().to_string();
    assert!(faults.starts_with("sources.yaml:4:32: sources.a.event.timestamp: "), "{faults}");
}

#[test]
fn a_merged_map_gives_sources_their_common_fields() {
    let text = "sources:\n  a: &base\n    pull: {url: \"http://a\"}\n    event: {id: /i}\n  b:\n    <<: *base\n    event: {id: /j}\n";
    let sources = crate::parse(text).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(sources.get("b").unwrap().pull.is_some());
    let id = |name: &str| {
        let source = sources.get(name).unwrap();
        source
            .extract(r#"{"i":1,"j":2}"#, Context::default(), Millis::new(0).unwrap())
            .unwrap()
            .id
            .to_string()
    };
    assert_eq!((id("a"), id("b")), ("1".to_owned(), "2".to_owned()));
}
