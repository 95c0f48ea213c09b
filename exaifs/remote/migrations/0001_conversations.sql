-- The tables that file_metadata lives beside, and the record of which migrations ran.
--
-- A project that already has one of these tables keeps its own, columns, policies and rows: every table is
-- made only where it is missing, and locked down (row level security, nothing for anon and authenticated)
-- only when it was made here.

CREATE TABLE IF NOT EXISTS public.exaifs_migrations (
    number integer PRIMARY KEY,                      -- as in the file's name; written by the migration itself
    name text NOT NULL,                              -- the rest of the file's name, for people
    applied_at timestamptz NOT NULL DEFAULT now()    -- when it ran first; running it again changes nothing
);
COMMENT ON TABLE public.exaifs_migrations IS 'Which migrations of exaifs were applied. Written by the migrations only.';
-- The embedded server makes a role when a statement outside of functions and blocks first names it: here.
REVOKE ALL ON TABLE public.exaifs_migrations FROM PUBLIC, anon, authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE public.exaifs_migrations TO service_role;

DO $$
BEGIN
    -- Counts the versions of the project's own schema, not those of exaifs: a row of ours would make the
    -- project's migration runner believe that its next version was there already.
    IF to_regclass('public.schema_version') IS NULL THEN
        CREATE TABLE public.schema_version (
            version integer PRIMARY KEY,                   -- counts up from 1
            applied_at timestamptz NOT NULL DEFAULT now(), -- for people
            description text                               -- for people; null: nobody said
        );
        INSERT INTO public.schema_version (version, description)
        VALUES (1, 'conversations, messages, files, conversation_files, file_metadata');
        ALTER TABLE public.schema_version ENABLE ROW LEVEL SECURITY;
        REVOKE ALL ON TABLE public.schema_version FROM PUBLIC, anon, authenticated;
    END IF;

    -- One dialogue with a model.
    IF to_regclass('public.conversations') IS NULL THEN
        CREATE TABLE public.conversations (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- made by the database
            continuation_id text NOT NULL UNIQUE,          -- the tools' name for it; its files are uploads/{continuation_id}/...
            title text,                                    -- for people; null: none yet
            metadata jsonb NOT NULL DEFAULT '{}',          -- free for the tools
            created_at timestamptz NOT NULL DEFAULT now(), -- of the row
            updated_at timestamptz NOT NULL DEFAULT now()  -- written by the tools
        );
        ALTER TABLE public.conversations ENABLE ROW LEVEL SECURITY;
        REVOKE ALL ON TABLE public.conversations FROM PUBLIC, anon, authenticated;
    END IF;
END
$$;

-- The other three refer to conversations and to each other. Where a project has some of them in a shape
-- that ours cannot refer to, the missing ones are left out with a warning: the files work without them.
DO $$
BEGIN
    -- What was said in a conversation, in the order of created_at.
    IF to_regclass('public.messages') IS NULL THEN
        CREATE TABLE public.messages (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- made by the database
            conversation_id uuid NOT NULL REFERENCES public.conversations (id) ON DELETE CASCADE, -- goes with its conversation
            role text NOT NULL CHECK (role IN ('user', 'assistant', 'system')), -- who spoke
            content text NOT NULL,                         -- what was said
            metadata jsonb NOT NULL DEFAULT '{}',          -- free for the tools: model, tokens
            created_at timestamptz NOT NULL DEFAULT now()  -- of the row; messages are shown in this order
        );
        CREATE INDEX messages_conversation_idx ON public.messages (conversation_id, created_at);
        ALTER TABLE public.messages ENABLE ROW LEVEL SECURITY;
        REVOKE ALL ON TABLE public.messages FROM PUBLIC, anon, authenticated;
    END IF;

    -- Files as the conversations know them; file_metadata has what is known about the bytes.
    IF to_regclass('public.files') IS NULL THEN
        CREATE TABLE public.files (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- made by the database
            bucket text NOT NULL DEFAULT 'user-files',     -- bucket of the object
            storage_path text NOT NULL,                    -- key of the object in the bucket
            original_name text NOT NULL,                   -- as the user called it
            mime_type text,                                -- null: not known
            size_bytes bigint,                             -- null: not known
            file_type text NOT NULL DEFAULT 'user_upload'  -- who made it
                CHECK (file_type IN ('user_upload', 'generated', 'cache')),
            metadata jsonb NOT NULL DEFAULT '{}',          -- free for the tools
            created_at timestamptz NOT NULL DEFAULT now(), -- of the row
            UNIQUE (bucket, storage_path)
        );
        ALTER TABLE public.files ENABLE ROW LEVEL SECURITY;
        REVOKE ALL ON TABLE public.files FROM PUBLIC, anon, authenticated;
    END IF;

    -- Which files belong to which conversations; a file may belong to several.
    IF to_regclass('public.conversation_files') IS NULL THEN
        CREATE TABLE public.conversation_files (
            conversation_id uuid NOT NULL REFERENCES public.conversations (id) ON DELETE CASCADE, -- goes with its conversation
            file_id uuid NOT NULL REFERENCES public.files (id) ON DELETE CASCADE, -- goes with its file
            added_at timestamptz NOT NULL DEFAULT now(),   -- for people
            PRIMARY KEY (conversation_id, file_id)
        );
        CREATE INDEX conversation_files_file_idx ON public.conversation_files (file_id);
        ALTER TABLE public.conversation_files ENABLE ROW LEVEL SECURITY;
        REVOKE ALL ON TABLE public.conversation_files FROM PUBLIC, anon, authenticated;
    END IF;
EXCEPTION WHEN datatype_mismatch OR undefined_column OR invalid_foreign_key OR wrong_object_type THEN
    RAISE WARNING 'exaifs: messages, files or conversation_files do not fit the tables of this project and were not made: %', SQLERRM;
END
$$;

INSERT INTO public.exaifs_migrations (number, name) VALUES (1, 'conversations') ON CONFLICT DO NOTHING;
