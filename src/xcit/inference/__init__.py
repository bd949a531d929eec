"""Images in, answers out: classes, features, label maps, objects, attention."""
