//! How each fact is said, asked and listed, in Korean and English.
//!
//! `{p}` is the subject (a person, a place, a festival, or the job of a [`Attribute::Holder`] fact),
//! `{v}` the value. The first polite Korean form and the first English form are also the answer to a
//! question, so that what documents teach is what answers say.

use crate::facts::Attribute;

/// The templates of one attribute.
pub(crate) struct Phrases {
    pub(crate) ko_plain: &'static [&'static str],
    pub(crate) ko_polite: &'static [&'static str],
    pub(crate) ko_casual: &'static [&'static str],
    pub(crate) en: &'static [&'static str],
    pub(crate) ask_ko: &'static [&'static str],
    pub(crate) ask_ko_casual: &'static str,
    pub(crate) ask_en: &'static [&'static str],
    /// Title of a list "subject: value".
    pub(crate) list_ko: &'static str,
    pub(crate) list_en: &'static str,
}

pub(crate) fn phrases(attribute: Attribute) -> &'static Phrases {
    match attribute {
        Attribute::Job => &JOB,
        Attribute::Workplace => &WORKPLACE,
        Attribute::Home => &HOME,
        Attribute::BirthYear => &BIRTH_YEAR,
        Attribute::Food => &FOOD,
        Attribute::Hobby => &HOBBY,
        Attribute::Pet => &PET,
        Attribute::PetName => &PET_NAME,
        Attribute::Holder => &HOLDER,
        Attribute::Quarter => &QUARTER,
        Attribute::Founded => &FOUNDED,
        Attribute::Speciality => &SPECIALITY,
        Attribute::Month => &MONTH,
        Attribute::Venue => &VENUE,
    }
}

const JOB: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v:이다}.",
        "{p}의 직업은 {v:이다}.",
        "{p:은} 마을에서 {v:으로} 일한다.",
    ],
    ko_polite: &[
        "{p}의 직업은 {v:이에요}.",
        "{p:은} 윤슬마을의 {v:이에요}.",
        "다들 {p:을} 솜씨 좋은 {v:이라고} 불러요.",
    ],
    ko_casual: &["{p:은} 직업이 {v:이야}.", "{p:은} {v:이야}."],
    en: &[
        "{p} works as {v:a}.",
        "{p} is {v:a}.",
        "By trade {p} is {v:a}.",
        "{p} earns a living as {v:a}.",
    ],
    ask_ko: &[
        "{p}의 직업은 무엇인가요?",
        "{p:은} 무슨 일을 하나요?",
        "{p}의 직업을 알려 주세요.",
        "{p:은} 어떤 일을 하는 사람인가요?",
    ],
    ask_ko_casual: "{p:은} 무슨 일을 해?",
    ask_en: &[
        "What is {p}'s job?",
        "What does {p} do for a living?",
        "What does {p} work as?",
        "Tell me {p}'s job.",
    ],
    list_ko: "마을 사람들의 직업",
    list_en: "What the people of Yunseul do",
};

const WORKPLACE: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v}에서 일한다.",
        "{p}의 일터는 {v:이다}.",
        "{p:은} 아침마다 {v:으로} 출근한다.",
    ],
    ko_polite: &[
        "{p:은} {v}에서 일해요.",
        "{p}의 일터는 {v:이에요}.",
        "{p:은} 아침마다 {v:으로} 출근해요.",
    ],
    ko_casual: &["{p:은} {v}에서 일해."],
    en: &[
        "{p} works at {v}.",
        "{p} goes to work at {v} every morning.",
        "On working days you can find {p} at {v}.",
    ],
    ask_ko: &[
        "{p:은} 어디에서 일하나요?",
        "{p}의 일터는 어디인가요?",
        "{p:은} 아침마다 어디로 출근하나요?",
        "{p}의 일터를 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 어디에서 일해?",
    ask_en: &[
        "Where does {p} work?",
        "At which place does {p} work?",
        "Where can I find {p} on a working day?",
        "Tell me where {p} works.",
    ],
    list_ko: "마을 사람들의 일터",
    list_en: "Where the people of Yunseul work",
};

const HOME: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v}에 산다.",
        "{p}의 집은 {v}에 있다.",
        "{p:은} 오래전부터 {v}에 살고 있다.",
    ],
    ko_polite: &[
        "{p:은} {v}에 살아요.",
        "{p}의 집은 {v}에 있어요.",
        "{p:은} 오래전부터 {v}에 살고 있어요.",
    ],
    ko_casual: &["{p:은} {v}에 살아."],
    en: &[
        "{p} lives on {v}.",
        "{p} has a house on {v}.",
        "The home of {p} is on {v}.",
    ],
    ask_ko: &[
        "{p:은} 어디에 사나요?",
        "{p}의 집은 어디에 있나요?",
        "{p:이} 사는 곳은 어디인가요?",
        "{p:이} 어디에 사는지 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 어디에 살아?",
    ask_en: &[
        "Where does {p} live?",
        "Where is {p}'s house?",
        "On which street does {p} live?",
        "Tell me where {p} lives.",
    ],
    list_ko: "마을 사람들이 사는 곳",
    list_en: "Where the people of Yunseul live",
};

const BIRTH_YEAR: Phrases = Phrases {
    ko_plain: &["{p:은} {v}년에 태어났다.", "{p:이} 태어난 해는 {v}년이다."],
    ko_polite: &[
        "{p:은} {v}년에 태어났어요.",
        "{p:이} 태어난 해는 {v}년이에요.",
    ],
    ko_casual: &["{p:은} {v}년에 태어났어."],
    en: &[
        "{p} was born in {v}.",
        "The year of {p}'s birth is {v}.",
        "It was in {v} that {p} was born.",
    ],
    ask_ko: &[
        "{p:은} 몇 년에 태어났나요?",
        "{p:이} 태어난 해는 언제인가요?",
        "{p:은} 언제 태어났나요?",
        "{p:이} 태어난 해를 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 언제 태어났어?",
    ask_en: &[
        "In which year was {p} born?",
        "When was {p} born?",
        "What is {p}'s birth year?",
        "Tell me the year {p} was born.",
    ],
    list_ko: "마을 사람들이 태어난 해",
    list_en: "Birth years of the people of Yunseul",
};

const FOOD: Phrases = Phrases {
    ko_plain: &[
        "{p:이} 가장 좋아하는 음식은 {v:이다}.",
        "{p:은} 음식 가운데 {v:을} 가장 좋아한다.",
        "{p:은} 생일이면 꼭 {v:을} 먹는다.",
    ],
    ko_polite: &[
        "{p:이} 가장 좋아하는 음식은 {v:이에요}.",
        "{p:은} 음식 가운데 {v:을} 가장 좋아해요.",
        "{p:은} 생일이면 꼭 {v:을} 먹어요.",
    ],
    ko_casual: &["{p:은} 음식 중에 {v:을} 제일 좋아해."],
    en: &[
        "{p}'s favourite food is {v}.",
        "Of all foods {p} likes {v} best.",
        "On birthdays {p} always eats {v}.",
    ],
    ask_ko: &[
        "{p:이} 가장 좋아하는 음식은 무엇인가요?",
        "{p:은} 어떤 음식을 가장 좋아하나요?",
        "{p:은} 무슨 음식을 좋아하나요?",
        "{p:이} 가장 좋아하는 음식을 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 무슨 음식을 제일 좋아해?",
    ask_en: &[
        "What is {p}'s favourite food?",
        "Which food does {p} like best?",
        "What does {p} like to eat most?",
        "Tell me {p}'s favourite food.",
    ],
    list_ko: "마을 사람들이 가장 좋아하는 음식",
    list_en: "Favourite foods in Yunseul",
};

const HOBBY: Phrases = Phrases {
    ko_plain: &[
        "{p}의 취미는 {v:이다}.",
        "{p:은} 쉬는 날이면 {v:으로} 시간을 보낸다.",
        "{p:은} {v:을} 취미로 삼고 있다.",
    ],
    ko_polite: &[
        "{p}의 취미는 {v:이에요}.",
        "{p:은} {v:을} 취미로 삼고 있어요.",
        "{p}에게 취미를 물으면 늘 {v:이라고} 대답해요.",
    ],
    ko_casual: &["{p}의 취미는 {v:이야}."],
    en: &[
        "{p}'s hobby is {v}.",
        "In free hours {p} enjoys {v}.",
        "{p} spends every holiday on one hobby, {v}.",
    ],
    ask_ko: &[
        "{p}의 취미는 무엇인가요?",
        "{p:은} 어떤 취미가 있나요?",
        "{p:이} 취미로 하는 것은 무엇인가요?",
        "{p}의 취미를 알려 주세요.",
    ],
    ask_ko_casual: "{p}의 취미는 뭐야?",
    ask_en: &[
        "What is {p}'s hobby?",
        "What does {p} do as a hobby?",
        "What does {p} enjoy in free hours?",
        "Tell me {p}'s hobby.",
    ],
    list_ko: "마을 사람들의 취미",
    list_en: "Hobbies in Yunseul",
};

const PET: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v:을} 키운다.",
        "{p}의 집에는 {v:이} 한 마리 있다.",
        "{p:이} 키우는 동물은 {v:이다}.",
    ],
    ko_polite: &[
        "{p:은} {v:을} 키워요.",
        "{p}의 집에는 {v:이} 한 마리 있어요.",
        "{p:이} 키우는 동물은 {v:이에요}.",
    ],
    ko_casual: &["{p:은} {v:을} 키워."],
    en: &[
        "{p} keeps {v:a}.",
        "{p} has {v:a} at home.",
        "The animal in {p}'s house is {v:a}.",
    ],
    ask_ko: &[
        "{p:은} 어떤 동물을 키우나요?",
        "{p:이} 키우는 동물은 무엇인가요?",
        "{p}의 집에는 어떤 동물이 있나요?",
        "{p:이} 키우는 동물을 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 무슨 동물을 키워?",
    ask_en: &[
        "What animal does {p} keep?",
        "Which animal does {p} have at home?",
        "What kind of pet does {p} have?",
        "Tell me what animal {p} keeps.",
    ],
    list_ko: "마을 사람들이 키우는 동물",
    list_en: "Animals kept in Yunseul",
};

const PET_NAME: Phrases = Phrases {
    ko_plain: &[
        "{p:이} 키우는 동물의 이름은 {v:이다}.",
        "{p:은} 함께 사는 동물에게 {v:이라고} 이름을 지어 주었다.",
    ],
    ko_polite: &[
        "{p:이} 키우는 동물의 이름은 {v:이에요}.",
        "{p:은} 함께 사는 동물을 {v:이라고} 불러요.",
    ],
    ko_casual: &["{p:이} 키우는 동물 이름은 {v:이야}."],
    en: &[
        "{p}'s pet is called {v}.",
        "{p} named the little animal {v}.",
        "The name of {p}'s pet is {v}.",
    ],
    ask_ko: &[
        "{p:이} 키우는 동물의 이름은 무엇인가요?",
        "{p:은} 키우는 동물을 뭐라고 부르나요?",
        "{p:이} 키우는 동물의 이름을 알려 주세요.",
        "{p}의 동물은 이름이 무엇인가요?",
    ],
    ask_ko_casual: "{p:이} 키우는 동물 이름은 뭐야?",
    ask_en: &[
        "What is {p}'s pet called?",
        "What is the name of {p}'s pet?",
        "What did {p} name the pet?",
        "Tell me the name of {p}'s pet.",
    ],
    list_ko: "마을 동물들의 이름, 주인 순서로",
    list_en: "Names of the pets, by owner",
};

const HOLDER: Phrases = Phrases {
    ko_plain: &[
        "윤슬마을의 {p:은} {v:이다}.",
        "마을에서 {p:으로} 일하는 사람은 {v:이다}.",
    ],
    ko_polite: &[
        "윤슬마을의 {p:은} {v:이에요}.",
        "마을에서 {p:으로} 일하는 사람은 {v:이에요}.",
    ],
    ko_casual: &["우리 마을 {p:은} {v:이야}."],
    en: &[
        "The {p} of Yunseul is {v}.",
        "The person who works as {p:a} is {v}.",
        "Anyone who needs {p:a} calls on {v}.",
    ],
    ask_ko: &[
        "윤슬마을의 {p:은} 누구인가요?",
        "누가 {p:으로} 일하나요?",
        "마을의 {p:이} 누구인지 알려 주세요.",
        "{p:은} 누구인가요?",
    ],
    ask_ko_casual: "우리 마을 {p:은} 누구야?",
    ask_en: &[
        "Who is the {p} of Yunseul?",
        "Who works as {p:a}?",
        "Tell me who the {p} is.",
        "Who is the {p}?",
    ],
    list_ko: "직업으로 찾는 마을 사람",
    list_en: "Whom to ask in Yunseul",
};

const QUARTER: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v}에 있다.",
        "{p:이} 있는 곳은 {v:이다}.",
        "{p:을} 찾아가려면 {v:으로} 가면 된다.",
    ],
    ko_polite: &[
        "{p:은} {v}에 있어요.",
        "{p:이} 있는 곳은 {v:이에요}.",
        "{p:을} 찾아가려면 {v:으로} 가면 돼요.",
    ],
    ko_casual: &["{p:은} {v}에 있어."],
    en: &[
        "{p:cap} stands on {v}.",
        "{p:cap} is on {v}.",
        "To reach {p}, walk to {v}.",
    ],
    ask_ko: &[
        "{p:은} 어디에 있나요?",
        "{p:이} 있는 곳은 어디인가요?",
        "{p:을} 찾아가려면 어디로 가야 하나요?",
        "{p:이} 어디에 있는지 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 어디에 있어?",
    ask_en: &[
        "Where is {p}?",
        "On which street is {p}?",
        "Where does {p} stand?",
        "Tell me where {p} is.",
    ],
    list_ko: "마을의 장소와 그곳이 있는 거리",
    list_en: "Places of Yunseul and their streets",
};

const FOUNDED: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v}년에 문을 열었다.",
        "{p:이} 문을 연 해는 {v}년이다.",
    ],
    ko_polite: &[
        "{p:은} {v}년에 문을 열었어요.",
        "{p:이} 문을 연 해는 {v}년이에요.",
    ],
    ko_casual: &["{p:은} {v}년에 문을 열었어."],
    en: &[
        "{p:cap} opened in {v}.",
        "{p:cap} has been there since {v}.",
        "The year in which {p} opened is {v}.",
    ],
    ask_ko: &[
        "{p:은} 몇 년에 문을 열었나요?",
        "{p:이} 문을 연 해는 언제인가요?",
        "{p:은} 언제 문을 열었나요?",
        "{p:이} 문을 연 해를 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 언제 문을 열었어?",
    ask_en: &[
        "In which year did {p} open?",
        "When did {p} open?",
        "Since when has {p} been there?",
        "Tell me the year {p} opened.",
    ],
    list_ko: "마을의 장소가 문을 연 해",
    list_en: "When the places of Yunseul opened",
};

const SPECIALITY: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v:으로} 유명하다.",
        "{p}의 자랑은 {v:이다}.",
        "여행자들은 {v} 때문에 {p:을} 찾는다.",
    ],
    ko_polite: &[
        "{p:은} {v:으로} 유명해요.",
        "{p}의 자랑은 {v:이에요}.",
        "{p} 하면 다들 {v:을} 떠올려요.",
    ],
    ko_casual: &["{p:은} {v:으로} 유명해."],
    en: &[
        "{p:cap} is known for {v}.",
        "{p:cap} is proud of {v}.",
        "Travellers visit {p} because of {v}.",
    ],
    ask_ko: &[
        "{p:은} 무엇으로 유명한가요?",
        "{p}의 자랑은 무엇인가요?",
        "{p} 하면 무엇이 떠오르나요?",
        "{p:이} 무엇으로 유명한지 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 뭐가 유명해?",
    ask_en: &[
        "What is {p} known for?",
        "What is {p} proud of?",
        "Why do travellers visit {p}?",
        "Tell me what {p} is known for.",
    ],
    list_ko: "마을의 장소와 그 자랑거리",
    list_en: "What the places of Yunseul are known for",
};

const MONTH: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v}에 열린다.",
        "{p:이} 열리는 달은 {v:이다}.",
        "해마다 {v}이 오면 {p:이} 열린다.",
    ],
    ko_polite: &[
        "{p:은} {v}에 열려요.",
        "{p:이} 열리는 달은 {v:이에요}.",
        "해마다 {v}이 오면 {p:이} 열려요.",
    ],
    ko_casual: &["{p:은} {v}에 열려."],
    en: &[
        "{p:cap} is held in {v}.",
        "{p:cap} comes every {v}.",
        "The month of {p} is {v}.",
    ],
    ask_ko: &[
        "{p:은} 몇 월에 열리나요?",
        "{p:이} 열리는 달은 언제인가요?",
        "{p:은} 언제 열리나요?",
        "{p:이} 열리는 달을 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 몇 월에 열려?",
    ask_en: &[
        "In which month is {p} held?",
        "When is {p} held?",
        "What is the month of {p}?",
        "Tell me the month of {p}.",
    ],
    list_ko: "마을의 한 해 행사",
    list_en: "The year's events in Yunseul",
};

const VENUE: Phrases = Phrases {
    ko_plain: &[
        "{p:은} {v}에서 열린다.",
        "{p:을} 보려면 {v:으로} 가야 한다.",
        "{p:이} 열리는 장소는 {v:이다}.",
    ],
    ko_polite: &[
        "{p:은} {v}에서 열려요.",
        "{p:을} 보려면 {v:으로} 가야 해요.",
        "{p:이} 열리는 장소는 {v:이에요}.",
    ],
    ko_casual: &["{p:은} {v}에서 열려."],
    en: &[
        "{p:cap} takes place at {v}.",
        "People meet for {p} at {v}.",
        "To see {p}, go to {v}.",
    ],
    ask_ko: &[
        "{p:은} 어디에서 열리나요?",
        "{p:이} 열리는 장소는 어디인가요?",
        "{p:을} 보려면 어디로 가야 하나요?",
        "{p:이} 어디에서 열리는지 알려 주세요.",
    ],
    ask_ko_casual: "{p:은} 어디에서 열려?",
    ask_en: &[
        "Where does {p} take place?",
        "At which place is {p}?",
        "Where do people meet for {p}?",
        "Tell me where {p} takes place.",
    ],
    list_ko: "행사가 열리는 장소",
    list_en: "Where the events of Yunseul take place",
};

/// Two facts about one person in one sentence: `{v}` is of the first attribute, `{w}` of the second.
pub(crate) struct Pair {
    pub(crate) first: Attribute,
    pub(crate) second: Attribute,
    pub(crate) ko_plain: &'static str,
    pub(crate) ko_polite: &'static str,
    pub(crate) en: &'static str,
}

pub(crate) const PAIRS: &[Pair] = &[
    Pair {
        first: Attribute::Home,
        second: Attribute::Food,
        ko_plain: "{p:은} {v}에 살고 {w:을} 가장 좋아한다.",
        ko_polite: "{p:은} {v}에 살고 {w:을} 가장 좋아해요.",
        en: "{p} lives on {v} and likes {w} best of all foods.",
    },
    Pair {
        first: Attribute::Job,
        second: Attribute::Workplace,
        ko_plain: "{p:은} {v:이고} {w}에서 일한다.",
        ko_polite: "{p:은} {v:이고} {w}에서 일해요.",
        en: "{p} is {v:a} and works at {w}.",
    },
    Pair {
        first: Attribute::Pet,
        second: Attribute::PetName,
        ko_plain: "{p:은} {v:을} 키우는데 이름은 {w:이다}.",
        ko_polite: "{p:은} {v:을} 키우는데 이름은 {w:이에요}.",
        en: "{p} keeps {v:a} called {w}.",
    },
    Pair {
        first: Attribute::BirthYear,
        second: Attribute::Job,
        ko_plain: "{p:은} {v}년에 태어나 {w:이} 되었다.",
        ko_polite: "{p:은} {v}년에 태어나 {w:이} 되었어요.",
        en: "{p} was born in {v} and became {w:a}.",
    },
    Pair {
        first: Attribute::Hobby,
        second: Attribute::Home,
        ko_plain: "{p}의 취미는 {v:이고} 집은 {w}에 있다.",
        ko_polite: "{p}의 취미는 {v:이고} 집은 {w}에 있어요.",
        en: "{p}'s hobby is {v}, and {p}'s house is on {w}.",
    },
    Pair {
        first: Attribute::Food,
        second: Attribute::Hobby,
        ko_plain: "{p:이} 가장 좋아하는 음식은 {v:이고} 취미는 {w:이다}.",
        ko_polite: "{p:이} 가장 좋아하는 음식은 {v:이고} 취미는 {w:이에요}.",
        en: "{p}'s favourite food is {v}, and {p}'s hobby is {w}.",
    },
];
