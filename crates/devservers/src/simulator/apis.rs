//! Samples of public JSON APIs: their paths, headers and formats, with invented values that move
//! with the clock.
//!
//! | Path | API | Special |
//! |---|---|---|
//! | `/earthquakes/feed/v1.0/summary/all_hour.geojson` | USGS | GeoJSON; events are revised |
//! | `/v2/networks/{network}` | CityBikes | times with an offset and a Z |
//! | `/products/{product}/trades` | Coinbase Exchange | CB-BEFORE, CB-AFTER; prices as text |
//! | `/events` | GitHub | ETag and 304, X-Poll-Interval, Link |
//! | `/api/states/all` | OpenSky | rows are arrays |
//! | `/v1/forecast` | Open-Meteo | one object; times without seconds and zone |
//! | `/iss-now.json` | Open Notify | one object; numbers as text |
//! | `/api/v3/simple/price` | CoinGecko | a map by id |

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, Query};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Age of the oldest trade in seconds. There is one trade each second.
const TRADES: i64 = 240;
/// Number of GitHub events. There is one event each ten seconds.
const GITHUB_EVENTS: i64 = 90;

type Parameters = Query<HashMap<String, String>>;

/// The routes of all APIs.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/earthquakes/feed/v1.0/summary/all_hour.geojson", get(async || Json(earthquakes(now_ms()))))
        .route("/v2/networks/{network}", get(bikes))
        .route("/products/{product}/trades", get(trades))
        .route("/events", get(events))
        .route("/api/states/all", get(async || Json(states(now_ms() / 1000))))
        .route("/v1/forecast", get(forecast))
        .route("/iss-now.json", get(async || Json(iss(now_ms() / 1000))))
        .route("/api/v3/simple/price", get(prices))
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}

/// The time as `strftime` writes it.
fn formatted(epoch_s: i64, format: &str) -> String {
    Timestamp::from_second(epoch_s).unwrap_or(Timestamp::UNIX_EPOCH).strftime(format).to_string()
}

fn number(parameters: &HashMap<String, String>, name: &str) -> Option<i64> {
    parameters.get(name)?.parse().ok()
}

/// A value from 0 to 1 that a number determines.
fn noise(seed: i64) -> f64 {
    let mixed = seed.unsigned_abs().wrapping_mul(6_364_136_223_846_793_005).rotate_left(23);
    #[expect(clippy::cast_precision_loss, reason = "only the upper 20 bits are used")]
    let unit = (mixed.wrapping_mul(2_862_933_555_777_941_757) >> 44) as f64 / f64::from(1 << 20);
    unit
}

/// As [`noise`], with two decimals, in a range.
fn between(low: f64, high: f64, seed: i64) -> f64 {
    ((low + (high - low) * noise(seed)) * 100.0).round() / 100.0
}

/// One new earthquake each minute, ten in the list. A third of them is revised each 20 s.
fn earthquakes(now_ms: i64) -> Value {
    let (minute, revision) = (now_ms / 60_000, now_ms / 20_000);
    let feature = |of: i64| {
        let time = of * 60_000 + 123;
        let last = revision - (revision - of).rem_euclid(3);
        let updated = (last * 20_000 + 456).max(time);
        json!({
            "type": "Feature",
            "id": format!("sim{of}"),
            "properties": {
                "mag": between(1.0, 6.5, of + updated / 20_000),
                "place": format!("{} km NE of Sampleville", 1 + of.rem_euclid(90)),
                "time": time,
                "updated": updated,
                "status": if updated > time { "reviewed" } else { "automatic" },
            },
            "geometry": {
                "type": "Point",
                "coordinates": [between(-180.0, 180.0, of), between(-60.0, 60.0, of + 1), between(1.0, 70.0, of + 2)],
            },
        })
    };
    let features: Vec<Value> = (0..10).map(|age| feature(minute - age)).collect();
    json!({
        "type": "FeatureCollection",
        "metadata": {"generated": minute * 60_000, "title": "Simulated earthquakes", "count": features.len()},
        "features": features,
    })
}

async fn bikes(Path(network): Path<String>) -> Json<Value> {
    Json(stations(&network, now_ms() / 1000))
}

/// Eight stations. Each reports once in 15 s.
fn stations(network: &str, now_s: i64) -> Value {
    let station = |number: i64| {
        let reported = now_s - (now_s - number).rem_euclid(15);
        #[expect(clippy::cast_possible_truncation, reason = "from 0 to 20")]
        let free = (noise(reported + number) * 20.0) as i64;
        json!({
            "id": format!("{network}-{number:02}"),
            "name": format!("Quai {number}"),
            "latitude": 48.8 + 0.01 * between(0.0, 10.0, number),
            "longitude": 2.3 + 0.01 * between(0.0, 10.0, number + 100),
            "timestamp": formatted(reported, "%Y-%m-%dT%H:%M:%S.505032+00:00Z"),
            "free_bikes": free,
            "empty_slots": 20 - free,
            "extra": {"last_updated": reported},
        })
    };
    json!({"network": {"id": network, "stations": (1..=8).map(station).collect::<Vec<_>>()}})
}

async fn trades(Query(parameters): Parameters) -> Response {
    let now_s = now_ms() / 1000;
    let limit = number(&parameters, "limit").unwrap_or(1000).clamp(1, 1000);
    let oldest = now_s - TRADES + 1;
    let (first, last) = match (number(&parameters, "after"), number(&parameters, "before")) {
        (Some(after), _) => (after.min(now_s + 1) - 1, oldest),
        (None, before) => (now_s, oldest.max(before.map_or(oldest, |before| before.saturating_add(1)))),
    };
    let last = last.max(first - limit + 1);
    let trade = |id: i64| {
        json!({
            "time": formatted(id, "%Y-%m-%dT%H:%M:%S.860123Z"),
            "trade_id": id,
            "price": format!("{:.8}", between(61_000.0, 63_000.0, id)),
            "size": format!("{:.8}", between(0.01, 2.0, id + 7)),
            "side": if noise(id + 3) < 0.5 { "buy" } else { "sell" },
        })
    };
    let list: Vec<Value> = (last..=first).rev().map(trade).collect();
    let mut response = Json(list).into_response();
    // An empty page has no cursors, and the oldest trade has none behind it.
    if first >= last {
        response.headers_mut().insert("cb-before", first.into());
        if last > oldest {
            response.headers_mut().insert("cb-after", last.into());
        }
    }
    response
}

async fn events(Query(parameters): Parameters, headers: HeaderMap) -> Response {
    let newest = now_ms() / 10_000;
    let page = number(&parameters, "page").unwrap_or(1).max(1);
    let size = number(&parameters, "per_page").unwrap_or(30).clamp(1, 100);
    let etag = format!("\"{newest}-{page}-{size}\"");
    let host =
        headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned();
    let next = (page.saturating_mul(size) < GITHUB_EVENTS)
        .then(|| format!("<http://{host}/events?per_page={size}&page={}>; rel=\"next\"", page + 1));
    let is_known =
        headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let first = (page - 1).saturating_mul(size).min(GITHUB_EVENTS);
        let ages = first..(first + size).min(GITHUB_EVENTS);
        Json(ages.map(|age| event(newest - age)).collect::<Vec<_>>()).into_response()
    };
    let own = [(header::ETAG.as_str(), Some(etag)), ("x-poll-interval", Some("60".into())), ("link", next)];
    for (name, value) in own {
        if let Some(value) = value.and_then(|value| value.parse().ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn event(number: i64) -> Value {
    json!({
        "id": (41_000_000_000 + number).to_string(),
        "type": if number % 3 == 0 { "WatchEvent" } else { "PushEvent" },
        "actor": {"id": number % 17},
        "repo": {"name": format!("sample/project-{}", number % 5)},
        "payload": {},
        "created_at": formatted(number * 10, "%Y-%m-%dT%H:%M:%SZ"),
    })
}

/// Six aircraft. One of them has no position.
fn states(now_s: i64) -> Value {
    let row = |number: i64| {
        let position = (number != 6).then_some(now_s - 1);
        json!([
            format!("3c66{number:02x}"),
            format!("{:8}", format!("DLH{number}LF")),
            "Germany",
            position,
            now_s - number % 3,
            position.map(|_| between(6.0, 14.0, now_s / 10 + number)),
            position.map(|_| between(48.0, 54.0, now_s / 10 + number + 50)),
            between(1000.0, 12_000.0, now_s / 10 + number),
            false,
            between(100.0, 260.0, number),
            98.3,
            4.5,
            null,
            9547.9,
            "1000",
            false,
            0
        ])
    };
    json!({"time": now_s, "states": (1..=6).map(row).collect::<Vec<_>>()})
}

async fn forecast(Query(parameters): Parameters) -> Json<Value> {
    let is_number = parameters.get("timeformat").is_some_and(|format| format == "unixtime");
    let decimal = |name: &str| parameters.get(name).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let now_s = now_ms() / 1000;
    let quarter = now_s - now_s.rem_euclid(900);
    let time = if is_number { json!(quarter) } else { json!(formatted(quarter, "%Y-%m-%dT%H:%M")) };
    Json(json!({
        "latitude": decimal("latitude"),
        "longitude": decimal("longitude"),
        "utc_offset_seconds": 0,
        "current_units": {"time": if is_number { "unixtime" } else { "iso8601" }, "temperature_2m": "°C"},
        "current": {"time": time, "interval": 900, "temperature_2m": between(-5.0, 30.0, quarter)},
    }))
}

fn iss(now_s: i64) -> Value {
    let longitude = (now_s * 4).rem_euclid(36_000) - 18_000;
    json!({
        "message": "success",
        "timestamp": now_s,
        "iss_position": {
            "latitude": format!("{:.4}", between(-51.6, 51.6, now_s / 60)),
            "longitude": format!("{}.{:02}", longitude / 100, longitude.abs() % 100),
        },
    })
}

/// The prices of the named coins. They change once a minute.
async fn prices(Query(parameters): Parameters) -> Json<Value> {
    let minute = now_ms() / 60_000;
    let ids = parameters.get("ids").map_or("bitcoin", String::as_str);
    let coin = |(seed, id): (i64, &str)| {
        let price = between(10.0, 60_000.0, minute + seed * 1000);
        (id.to_owned(), json!({"usd": price, "last_updated_at": minute * 60}))
    };
    Json((0..).zip(ids.split(',')).map(coin).collect())
}
