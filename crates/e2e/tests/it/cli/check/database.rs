//! MongoDB: login, rights, write concern, and the indexes of collections.

use ::mongodb::Client;
use bson::{Document, doc};
use devservers::{Credentials, Database, DatabaseOptions, Progress};
use testkit::scripted_mongodb::{self, Answer, ScriptedServer};
use testkit::{HoldingProxy, Names, SourcesFile, Stack};

use super::findings::check;

const ROOT: &str = "mongopass";

/// A MongoDB with authentication, a user that may only read, and two users that lack one right
/// each.
async fn guarded() -> (Database, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let auth = Some(Credentials { user: "admin".into(), password: ROOT.into() });
    let options = DatabaseOptions { auth, ..DatabaseOptions::new(folder.path().join("mongodb")) };
    let database = Database::start(options, Progress::silent()).await.unwrap();
    let reader = doc! { "createUser": "reader", "pwd": "secret", "roles": [{ "role": "read", "db": "kafka_events_db" }] };
    let client = Client::with_uri_str(database.uri()).await.unwrap();
    let admin = client.database("admin");
    admin.run_command(reader).await.unwrap();
    let lacking =
        [("updater", vec!["find", "update"]), ("inserter", vec!["find", "update", "insert", "listIndexes"])];
    for (user, actions) in lacking {
        let privilege =
            doc! { "resource": { "db": "kafka_events_db", "collection": "" }, "actions": actions };
        let role = doc! { "createRole": format!("{user}s"), "privileges": [privilege], "roles": [] };
        admin.run_command(role).await.unwrap();
        let user = doc! { "createUser": user, "pwd": "secret", "roles": [format!("{user}s")] };
        admin.run_command(user).await.unwrap();
    }
    (database, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_login_and_missing_rights_are_reported_without_password() {
    let (database, _folder) = guarded().await;
    let names = Names {
        mongodb: database.uri(),
        database: "kafka_events_db".into(),
        ..Stack::shared().await.names()
    };
    let known = check(&names, &[]).await;
    known.assert("ok", "mongodb rights", "kafka_events_db.adsbdb");
    known.assert("warn", "mongodb password", "docker-compose.yml");

    let with = |login: &str| names.mongodb.replace(&format!("admin:{ROOT}@"), login);
    let wrong = check(&names, &[("MONGODB_URI", &with("admin:hunter2@"))]).await;
    wrong.assert("fail", "mongodb", "rejects the credentials");
    assert!(!format!("{wrong:?}").contains("hunter2"));
    let reader = check(&names, &[("MONGODB_URI", &with("reader:secret@"))]).await;
    reader.assert("fail", "mongodb rights", "no update on kafka_events_db.adsbdb");
    let updater = check(&names, &[("MONGODB_URI", &with("updater:secret@"))]).await;
    updater.assert("fail", "mongodb rights", "no insert on kafka_events_db.adsbdb");
    let root = Client::with_uri_str(&names.mongodb).await.unwrap();
    let adsbdb = root.database(&names.database).collection("adsbdb");
    adsbdb.insert_one(doc! { "event_id": "a" }).await.unwrap();
    let inserter = check(&names, &[("MONGODB_URI", &with("inserter:secret@"))]).await;
    inserter.assert("ok", "mongodb rights", "find, update and insert on kafka_events_db.adsbdb");
    inserter.assert("fail", "mongodb rights", "no createIndex on kafka_events_db.adsbdb");
    assert_eq!(adsbdb.count_documents(doc! {}).await.unwrap(), 1, "check changes nothing");
    let nobody = check(&names, &[("MONGODB_URI", &with("")), ("EXPECTED_SOURCE", "*")]).await;
    nobody.assert("fail", "mongodb rights", "cannot be listed");
}

const DELETES: &str = "sources: {orders: {push: {}, event: {id: /no}, delete: {}}}\n";

#[tokio::test(flavor = "multi_thread")]
async fn collection_of_deletes_is_checked_for_its_expiry_and_not_changed() {
    let file = SourcesFile::new(DELETES);
    let names = Stack::shared().await.names().with_sources(&file);
    let name = &names.database;
    let (subject, database) =
        (format!("collection {name}.orders.deletes"), testkit::mongo::database(&names).await);
    let granted = format!("find, update and insert on {name}.orders.deletes, remove on {name}.orders");
    let found = check(&names, &[]).await;
    found.assert("ok", "mongodb rights", &granted);
    assert!(!format!("{found:?}").contains(&subject), "it does not exist yet: {found:?}");

    for name in ["orders", "orders.deletes"] {
        database.collection(name).insert_one(doc! { "event_id": "a" }).await.unwrap();
    }
    let found = check(&names, &[]).await;
    found.assert("ok", "mongodb rights", &granted);
    found.assert("warn", &subject, "index expires_at_1 is missing: deletes do not expire");
    let expiry = doc! { "key": { "expires_at": 1 }, "name": "expires_at_1", "expireAfterSeconds": 0 };
    database.run_command(doc! { "createIndexes": "orders.deletes", "indexes": [expiry] }).await.unwrap();
    check(&names, &[]).await.assert("ok", &subject, "deletes expire");
    for name in ["orders", "orders.deletes"] {
        let documents = database.collection::<Document>(name).count_documents(doc! {}).await.unwrap();
        assert_eq!(documents, 1, "check changes nothing");
    }
}

// The bundled server grants rights only on whole databases, and lets all who may update delete.
#[tokio::test(flavor = "multi_thread")]
async fn each_right_that_deletes_need_is_checked() {
    let file = SourcesFile::new(DELETES);
    let names = Stack::shared().await.names().with_sources(&file);
    for (commands, collection, right) in [
        (&["find"][..], "orders.deletes", "find"),
        (&["update", "findAndModify"], "orders.deletes", "update"),
        (&["insert"], "orders.deletes", "insert"),
        (&["listIndexes"], "orders.deletes", "listIndexes"),
        (&["createIndexes"], "orders.deletes", "createIndex"),
        (&["delete"], "orders", "remove"),
    ] {
        let server = ScriptedServer::start(21, move |command| {
            let is_rejected = |name: &&str| command.get_str(name).is_ok_and(|named| named == collection);
            if commands.iter().any(is_rejected) {
                return Answer::Reply(scripted_mongodb::error(13, "not authorized"));
            }
            match command.contains_key("listIndexes") {
                true => {
                    Answer::Reply(scripted_mongodb::indexes(&[doc! { "key": { "_id": 1 }, "name": "_id_" }]))
                }
                false => Answer::Usual,
            }
        });
        let server = server.await;
        let found = check(&names, &[("MONGODB_URI", &server.uri)]).await;
        let cause = format!("no {right} on {}.{collection}: ", names.database);
        found.assert("fail", "mongodb rights", &cause);
        let remedy = format!("grant the user of MONGODB_URI the role readWrite on {}", names.database);
        assert!(found.all.iter().any(|finding| finding["remedy"] == remedy.as_str()), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_mongodb_is_a_failure_weak_write_concern_a_warning() {
    let names = Stack::shared().await.names();
    let nobody = format!("mongodb://{}", testkit::process::free_address());
    check(&names, &[("MONGODB_URI", &nobody)]).await.assert("fail", "mongodb", "does not answer");
    for (option, level) in [("w=1", "warn"), ("journal=false", "warn"), ("w=3", "fail")] {
        let uri = testkit::mongo::with_option(&names.mongodb, option);
        check(&names, &[("MONGODB_URI", &uri)]).await.assert(level, "mongodb write concern", option);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_client_that_cannot_be_built_is_a_failure_and_the_rest_is_checked() {
    let names = Stack::shared().await.names();
    let file = tempfile::NamedTempFile::new().unwrap();
    let without_key = format!("tls=true&tlsCertificateKeyFile={}", file.path().display());
    let uri = testkit::mongo::with_option(&names.mongodb, &without_key);
    let found = check(&names, &[("MONGODB_URI", &uri)]).await;
    found.assert("fail", "mongodb", "cannot be used: ");
    found.assert("ok", "mongodb write concern", "majority");
    found.assert("ok", "kafka", "answers");
    found.assert("warn", "producer", "not checked");
}

async fn index(names: &Names, index: Document) {
    let client = Client::with_uri_str(&names.mongodb).await.unwrap();
    let command = doc! { "createIndexes": "adsbdb", "indexes": [index] };
    client.database(&names.database).run_command(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_the_indexes_of_a_collection_is_reported() {
    let names = Stack::shared().await.names();
    let subject = format!("collection {}.adsbdb", names.database);
    let adsbdb = testkit::mongo::collection(&names, "adsbdb").await;
    adsbdb.insert_one(doc! { "event_id": "a" }).await.unwrap();
    check(&names, &[]).await.assert("warn", &subject, "no unique index on event_id yet");

    adsbdb.insert_one(doc! { "event_id": "a", "again": true }).await.unwrap();
    check(&names, &[]).await.assert("fail", &subject, "1 duplicate document prevents the unique index");
    adsbdb.delete_one(doc! { "again": true }).await.unwrap();

    index(&names, doc! { "key": { "event_id": 1 }, "name": "event_id_1" }).await;
    check(&names, &[]).await.assert("fail", &subject, "index event_id_1 prevents the unique index");
    adsbdb.drop_index("event_id_1").await.unwrap();

    index(&names, doc! { "key": { "event_id": 1 }, "name": "event_id_1", "unique": true }).await;
    check(&names, &[]).await.assert("warn", &subject, "mode_s_1_registration_1_event_timestamp_1");

    let key = doc! { "mode_s": 1, "registration": 1, "event_timestamp": 1 };
    index(&names, doc! { "key": key, "name": "lookup" }).await;
    check(&names, &[("EXPECTED_SOURCE", "*")]).await.assert("ok", &subject, "unique index on event_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_source_expected_foreign_collections_and_views_are_ignored() {
    let names = Stack::shared().await.names();
    let any = [("EXPECTED_SOURCE", "*")];
    let rights = "find, update and insert on";
    check(&names, &any).await.assert("ok", "mongodb rights", rights);

    let others = testkit::mongo::collection(&names, "orders").await;
    // Three documents without event_id would block its unique index.
    others.insert_many([doc! { "order": 1 }, doc! { "order": 2 }, doc! { "order": 3 }]).await.unwrap();
    let client = Client::with_uri_str(&names.mongodb).await.unwrap();
    let view = doc! { "create": "latest", "viewOn": "orders", "pipeline": [] };
    client.database(&names.database).run_command(view).await.unwrap();
    let found = check(&names, &any).await;
    found.assert("ok", "mongodb rights", rights);
    assert!(
        !format!("{found:?}").contains("orders") && !format!("{found:?}").contains("latest"),
        "{found:?}"
    );

    let ours = testkit::mongo::collection(&names, "adsbdb").await;
    ours.insert_many([doc! { "old": true }, doc! { "event_id": "a" }]).await.unwrap();
    let found = check(&names, &any).await;
    found.assert("warn", &format!("collection {}.adsbdb", names.database), "no unique index");
    assert!(!format!("{found:?}").contains("orders"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_that_stops_responding_is_a_failure_within_seconds() {
    let names = Stack::shared().await.names();
    let adsbdb = testkit::mongo::collection(&names, "adsbdb").await;
    adsbdb.insert_one(doc! { "event_id": "a" }).await.unwrap();
    let server = testkit::mongo::address(&names.mongodb).await;
    let collection = format!("collection {}.adsbdb", names.database);
    for (command, subject, part) in [
        (&b"\x02listIndexes\0"[..], collection.clone(), "cannot be read"),
        (b"\x02aggregate\0", collection, "no reply within 10 s to the search for duplicates"),
        (b"\x02find\0", "mongodb rights".to_owned(), "no reply within"),
    ] {
        let proxy = HoldingProxy::start(server, command).await;
        let through = Names { mongodb: format!("mongodb://{}", proxy.address), ..names.clone() };
        check(&through, &[]).await.assert("fail", &subject, part);
    }
}
