//! Eight public APIs, each as a source of the file, with a sample of its answer.

use events::{Millis, Payload};
use sources::{Answer, Context, Source, Sources};

use crate::source;

/// Id, time and payload of each record in an answer.
fn events(sources: &Sources, answer: &str) -> Vec<(String, String, String)> {
    let source: &Source = sources.get("s").unwrap();
    let sources::Upstream::Http(api) = &source.pull.as_ref().unwrap().upstream else { panic!("no HTTP") };
    let now = Millis::new(1_800_000_000_000).unwrap();
    let around = Answer::new(answer);
    let records = api.records.of(answer).unwrap();
    let events = records.map(|record| {
        let context = Context { answer: Some(&around), key: record.key.as_deref() };
        let extracted = source.extract(record.text, context, now).unwrap_or_else(|fault| panic!("{fault}"));
        let payload = Payload::parse(&extracted.payload).unwrap_or_else(|faults| panic!("{faults:?}"));
        (extracted.id.to_string(), extracted.timestamp.iso(), payload.as_str().to_owned())
    });
    events.collect()
}

/// The only event of an answer.
fn event(fields: &str, answer: &str) -> (String, String, String) {
    let sources = source(fields).unwrap_or_else(|faults| panic!("{faults}"));
    let mut events = events(&sources, answer);
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

fn owned(event: (&str, &str, &str)) -> (String, String, String) {
    (event.0.to_owned(), event.1.to_owned(), event.2.to_owned())
}

#[test]
fn opensky_has_rows_that_are_arrays_and_a_time_of_the_answer() {
    let answer = r#"{"time":1795898400,"states":[["3c6444","DLH9LF  ","Germany",null,1795898399,6.15,50.19,9639.3,false,232.9,98.3,4.5,null,9547.9,"1000",false,0]]}"#;
    let fields = |timestamp: &str| {
        format!(
            r"pull:
  url: https://opensky-network.org/api/states/all?lamin=45.8
  records: /states
  wait: X-Rate-Limit-Retry-After-Seconds
event:
  id: /0
  timestamp: {timestamp}
  payload: '{{icao24: .[0], callsign: (.[1] | rtrim), at: .[3], lon: .[5], lat: .[6], altitude: .[7]}}'"
        )
    };
    let payload =
        r#"{"icao24":"3c6444","callsign":"DLH9LF","at":null,"lon":6.15,"lat":50.19,"altitude":9639.3}"#;
    let by_row = event(&fields("[/3, /4, {answer: /time}]"), answer);
    assert_eq!(by_row, owned(("3c6444", "2026-11-28T20:39:59.000Z", payload)));
    let by_answer = event(&fields("{answer: /time, unit: s}"), answer);
    assert_eq!(by_answer.1, "2026-11-28T20:40:00.000Z");
}

#[test]
fn usgs_earthquakes_have_milliseconds() {
    let answer = r#"{"type":"FeatureCollection","metadata":{"generated":1795898400000,"count":1},"features":[{"type":"Feature","id":"us7000abcd","properties":{"mag":4.6,"time":1795897000123,"updated":1795898300456,"status":"automatic"},"geometry":{"type":"Point","coordinates":[121.7,24.1,10.0]}}]}"#;
    let found = event(
        r#"pull: {url: "https://earthquake.usgs.gov/earthquakes/feed/v1.0/summary/all_hour.geojson", records: /features}
event:
  id: /id
  timestamp: /properties/updated
  payload: '.properties + {where: .geometry.coordinates}'"#,
        answer,
    );
    let payload = r#"{"mag":4.6,"time":1795897000123,"updated":1795898300456,"status":"automatic","where":[121.7,24.1,10.0]}"#;
    assert_eq!(found, owned(("us7000abcd", "2026-11-28T20:38:20.456Z", payload)));
}

#[test]
fn open_meteo_is_one_object_without_id_seconds_or_zone() {
    let answer = r#"{"latitude":52.52,"longitude":13.42,"utc_offset_seconds":0,"current_units":{"time":"iso8601"},"current":{"time":"2026-11-28T20:15","interval":900,"temperature_2m":3.4}}"#;
    let found = event(
        r#"pull: {url: "https://api.open-meteo.com/v1/forecast?latitude=52.52&longitude=13.42&current=temperature_2m"}
event:
  id: {join: [/latitude, /longitude, /current/time], with: ":"}
  timestamp: {from: /current/time, zone: UTC}"#,
        answer,
    );
    assert_eq!(found, owned(("52.52:13.42:2026-11-28T20:15", "2026-11-28T20:15:00.000Z", answer)));
    let part = event(
        r#"pull: {url: "https://api.open-meteo.com/v1/forecast", records: {object: /current}}
event:
  id: {join: [{answer: /latitude}, {answer: /longitude}, /time]}
  timestamp: {from: /time, zone: UTC}"#,
        answer,
    );
    let payload = r#"{"time":"2026-11-28T20:15","interval":900,"temperature_2m":3.4}"#;
    assert_eq!(part, owned(("52.52:13.42:2026-11-28T20:15", "2026-11-28T20:15:00.000Z", payload)));
}

#[test]
fn github_events_are_a_list_with_pages_by_link() {
    let record = r#"{"id":"41234567890","type":"PushEvent","actor":{"id":1},"repo":{"name":"a/b"},"payload":{},"created_at":"2026-11-28T20:15:03Z"}"#;
    let found = event(
        r#"pull:
  url: https://api.github.com/events
  headers: {User-Agent: slipstream, Accept: application/vnd.github+json}
  records: ""
  paging: {link_header: true, max_pages: 3}
event: {id: /id, timestamp: /created_at}"#,
        &format!("[{record}]"),
    );
    assert_eq!(found, owned(("41234567890", "2026-11-28T20:15:03.000Z", record)));
}

#[test]
fn coinbase_trades_have_a_cursor_in_a_header_and_prices_as_strings() {
    let record = r#"{"time":"2026-11-28T20:15:03.860123Z","trade_id":86327327,"price":"6225.32000000","size":"0.06469797","side":"sell"}"#;
    let found = event(
        r#"pull:
  url: https://api.exchange.coinbase.com/products/BTC-USD/trades?limit=100
  records: {list: ""}
  paging: {cursor_header: CB-AFTER, param: after}
event: {id: /trade_id, timestamp: /time}"#,
        &format!("[{record}]"),
    );
    assert_eq!(found, owned(("86327327", "2026-11-28T20:15:03.860Z", record)));
}

#[test]
fn citybikes_has_times_with_an_offset_and_a_z() {
    let record = r#"{"id":"f5a5","name":"Quai","latitude":48.8,"longitude":2.3,"timestamp":"2026-11-28T20:15:02.505032+00:00Z","free_bikes":1,"empty_slots":19,"extra":{"last_updated":1795898400}}"#;
    let answer = format!(r#"{{"network":{{"id":"velib","stations":[{record}]}}}}"#);
    let found = event(
        r#"pull: {url: "https://api.citybik.es/v2/networks/velib?fields=stations", records: /network/stations}
event: {id: /id, timestamp: {from: /timestamp, format: iso8601}}"#,
        &answer,
    );
    assert_eq!(found, owned(("f5a5", "2026-11-28T20:15:02.505Z", record)));
}

#[test]
fn the_iss_is_one_object_without_id() {
    let answer = r#"{"message": "success", "timestamp": 1795898400, "iss_position": {"latitude": "-12.5", "longitude": "7.25"}}"#;
    let found = event(
        r#"pull: {url: "http://api.open-notify.org/iss-now.json", every: 10s}
event:
  id: {from: '"iss:\(.timestamp)"'}
  timestamp: {from: /timestamp, unit: s}
  payload: '.iss_position | map_values(tonumber)'"#,
        answer,
    );
    let payload = r#"{"latitude":-12.5,"longitude":7.25}"#;
    assert_eq!(found, owned(("iss:1795898400", "2026-11-28T20:40:00.000Z", payload)));
}

#[test]
fn coingecko_is_a_map_keyed_by_id() {
    let answer = r#"{"bitcoin":{"usd":91234.5,"last_updated_at":1795898400},"ethereum":{"usd":3012,"last_updated_at":1795898399}}"#;
    let sources = source(
        r#"pull:
  url: https://api.coingecko.com/api/v3/simple/price?ids=bitcoin,ethereum&vs_currencies=usd&include_last_updated_at=true
  records: {map: ""}
event:
  id: $key
  timestamp: /last_updated_at
  payload: '. + {coin: $key}'"#,
    );
    let sources = sources.unwrap_or_else(|faults| panic!("{faults}"));
    let expected = [
        (
            "bitcoin",
            "2026-11-28T20:40:00.000Z",
            r#"{"usd":91234.5,"last_updated_at":1795898400,"coin":"bitcoin"}"#,
        ),
        (
            "ethereum",
            "2026-11-28T20:39:59.000Z",
            r#"{"usd":3012,"last_updated_at":1795898399,"coin":"ethereum"}"#,
        ),
    ];
    assert_eq!(events(&sources, answer), expected.map(owned));
}
